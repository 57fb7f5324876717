// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Net;
using System.Net.Http.Json;
using System.Net.Sockets;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Assets;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>The samples, each as a process, one after the other's model.</summary>
[TestClass]
public sealed class SamplesTests
{
    private readonly string _folder = Directory.CreateTempSubdirectory("samples").FullName;

    [TestCleanup]
    public void Cleanup() => Directory.Delete(_folder, recursive: true);

    [TestMethod]
    public async Task EachSampleRuns()
    {
        string zip = Path.Combine(_folder, "reviews.zip");
        (int code, string output, string error) = Run("TextClassification");
        Assert.AreEqual(0, code, error);
        Assert.AreEqual("it broke after one day: bad\ngreat quality and fast delivery: good\n", output);
        Assert.IsTrue(File.Exists(zip));

        string texts = Path.Combine(_folder, "texts.txt"), predictions = Path.Combine(_folder, "predictions.tsv");
        File.WriteAllLines(texts, Enumerable.Range(0, 20).Select(i => i % 2 == 0 ? $"it broke after {i} days" : "great quality and fast delivery"));
        (code, output, error) = Run("BatchScoring", zip, texts, predictions);
        Assert.AreEqual(0, code, error);
        StringAssert.StartsWith(output, "20 rows in ");
        string[] lines = File.ReadAllLines(predictions);
        Assert.HasCount(20, lines);
        Assert.IsTrue(lines.All(l => l.Split('\t').Length == 3));
        Assert.AreEqual(("it broke after 0 days", "bad"), (lines[0].Split('\t')[0], lines[0].Split('\t')[1]));
        Assert.AreEqual("good", lines[1].Split('\t')[1]);

        await Serve(zip);
    }

    [TestMethod]
    public void PatternsAreLearned()
    {
        // A build without the embedded ViT runs with a tiny random one, which learns nothing to speak of.
        bool embedded = DefaultVisionBackbone.Exists;
        string[] tiny = ["--epochs", "1", "--backbone", TinyTask.Image.Folder];
        (int code, string output, string error) = Run("ImageClassification", ["--rows", "400", .. embedded ? [] : tiny]);
        Assert.AreEqual(0, code, error);
        string[] lines = output.TrimEnd('\n').Split('\n');
        Assert.AreEqual("400 pictures to learn from, 400 to ask about", lines[0]);
        Assert.AreEqual(0.125, Accuracy(lines[1], "guessing"));
        double frozen = Accuracy(lines[2], "frozen backbone, linear head"), lora = Accuracy(lines[3], "LoRA, rank 16");
        if (embedded) Assert.IsTrue(frozen > 0.125 && lora > frozen + 0.05, output);
        Answers(lines[4..], @"cloth-400/test/[a-z-]+/0000\.png", 8);
        Assert.IsTrue(File.Exists(Path.Combine(_folder, "cloth.zip")));
    }

    [TestMethod]
    public void DigitsAreLearned()
    {
        string backbone = Path.Combine(Shared.Root, "weights", "kwt1_speech_commands"), recordings = Path.Combine(Shared.Root, "data", "fsdd");
        if (!Directory.Exists(backbone) || !Directory.Exists(recordings)) Assert.Inconclusive($"There is no {backbone} or no {recordings}.");
        (int code, string output, string error) = Run("SpokenDigits", backbone, recordings, "--rows", "180", "--epochs", "2");
        Assert.AreEqual(0, code, error);
        string[] lines = output.TrimEnd('\n').Split('\n');
        Assert.AreEqual("180 recordings to learn from, 180 to ask about", lines[0]);
        double frozen = Accuracy(lines[1], "frozen backbone, linear head"), lora = Accuracy(lines[2], "LoRA, rank 8");
        Assert.IsTrue(frozen > 0.1 && lora > 0.1, output);
        Answers(lines[3..], @"\d_[a-z]+_\d\.wav", 10);
        Assert.IsTrue(File.Exists(Path.Combine(_folder, "digits.zip")));
    }

    [TestMethod]
    public void DigitsSayWhatTheyNeed()
    {
        foreach (string[] arguments in (string[][])[[], [_folder], [_folder, Path.Combine(_folder, "nowhere")]])
        {
            (int code, string output, string error) = Run("SpokenDigits", arguments);
            Assert.AreEqual((2, ""), (code, output));
            foreach (string part in (string[])["usage: SpokenDigits BACKBONE RECORDINGS", "Keyword Transformer", "free-spoken-digit-dataset", "DIGIT_SPEAKER_TAKE.wav"])
                StringAssert.Contains(error, part);
        }
    }

    private static double Accuracy(string line, string name)
    {
        StringAssert.StartsWith(line, name.PadRight(30));
        return double.Parse(line[30..].TrimStart().Split(' ')[0], System.Globalization.CultureInfo.InvariantCulture);
    }

    private static void Answers(string[] lines, string file, int count)
    {
        Assert.HasCount(count, lines);
        foreach (string line in lines) StringAssert.Matches(line, new Regex($@"^{file}: [a-z0-9-]+ \((0\.\d\d|1\.00)\)$"));
    }

    private (int Code, string Output, string Error) Run(string sample, params string[] arguments) =>
        Child.Run(sample, "Samples." + sample, arguments, folder: _folder);

    private async Task Serve(string zip)
    {
        string address = $"http://127.0.0.1:{FreePort()}";
        using Child service = Child.Start("PredictionService", "Samples.PredictionService", [zip, "--urls", address], _folder);
        using var client = new HttpClient(new SocketsHttpHandler { UseProxy = false }) { BaseAddress = new Uri(address), Timeout = TimeSpan.FromSeconds(30) };
        service.Until(() => Ready(client));
        string[] texts = ["it broke after one day", "great quality and fast delivery"];
        JsonNode[] answers = await Task.WhenAll(Enumerable.Range(0, 20).Select(async i =>
        {
            using HttpResponseMessage response = await client.PostAsJsonAsync("/classify", new { text = texts[i % 2] });
            Assert.AreEqual(HttpStatusCode.OK, response.StatusCode, service.Error);
            return JsonNode.Parse(await response.Content.ReadAsStringAsync())!;
        }));
        for (int i = 0; i < answers.Length; i++)
        {
            Assert.AreEqual(i % 2 == 0 ? "bad" : "good", (string)answers[i]["label"]!);
            Assert.AreEqual((double)answers[i % 2]["probability"]!, (double)answers[i]["probability"]!, 1e-6);
        }
        using HttpResponseMessage empty = await client.PostAsJsonAsync("/classify", new { text = "" });
        Assert.AreEqual(HttpStatusCode.BadRequest, empty.StatusCode);
        using HttpResponseMessage broken = await client.PostAsync("/classify", new StringContent("{", System.Text.Encoding.UTF8, "application/json"));
        Assert.AreEqual(HttpStatusCode.BadRequest, broken.StatusCode);
        Assert.IsFalse(service.HasExited);
    }

    private static bool Ready(HttpClient client)
    {
        try
        {
            return client.GetAsync("/health").GetAwaiter().GetResult().IsSuccessStatusCode;
        }
        catch (HttpRequestException)
        {
            return false;
        }
    }

    private static int FreePort()
    {
        var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        int port = ((IPEndPoint)listener.LocalEndpoint).Port;
        listener.Stop();
        return port;
    }
}
