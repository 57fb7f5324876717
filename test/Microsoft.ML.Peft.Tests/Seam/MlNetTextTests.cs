// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Text files in the forms that the records do not show.</summary>
[TestClass]
public sealed class MlNetTextTests
{
    private static IDataView Load(MLContext ml, string text, TextLoader.Options options)
    {
        string file = Path.Combine(Directory.CreateTempSubdirectory().FullName, "data.txt");
        File.WriteAllText(file, text);
        return ml.Data.LoadFromTextFile(file, options);
    }

    [TestMethod]
    public void SparseLinesGiveIndexAndValue()
    {
        var ml = new MLContext(1);
        IDataView data = Load(ml, "1,6,0:2.5,4:7\n0,6,5:1\n1,1,2,3,4,5,6\n", new TextLoader.Options
        {
            Separators = [','],
            AllowSparse = true,
            Columns = [new TextLoader.Column("Label", DataKind.Boolean, 0), new TextLoader.Column("Features", DataKind.Single, 1, 6)],
        });
        float[][] rows = data.GetColumn<float[]>("Features").ToArray();
        CollectionAssert.AreEqual(new[] { 2.5f, 0, 0, 0, 7, 0 }, rows[0]);
        CollectionAssert.AreEqual(new[] { 0f, 0, 0, 0, 0, 1 }, rows[1]);
        CollectionAssert.AreEqual(new[] { 1f, 2, 3, 4, 5, 6 }, rows[2]);
        Assert.IsFalse(data.GetColumn<VBuffer<float>>("Features").First().IsDense);
    }

    [TestMethod]
    public void RangesReachToTheEndOfTheLine()
    {
        var ml = new MLContext(1);
        IDataView data = Load(ml, "h,a,b,c\nx,1,2,3\ny,4,5,6\n", new TextLoader.Options
        {
            Separators = [','],
            HasHeader = true,
            Columns =
            [
                new TextLoader.Column("Name", DataKind.String, 0),
                new TextLoader.Column("All", DataKind.Single, [new TextLoader.Range(1, null)]),
                new TextLoader.Column("Each", DataKind.Single, [new TextLoader.Range { Min = 2, VariableEnd = true }]),
                new TextLoader.Column("Two", DataKind.Int32, [new TextLoader.Range(3), new TextLoader.Range(1)]),
            ],
        });
        Assert.AreEqual("Vector<Single, 3>", data.Schema["All"].Type.ToString());
        Assert.AreEqual("Vector<Single>", data.Schema["Each"].Type.ToString());
        VBuffer<ReadOnlyMemory<char>> names = default;
        data.Schema["All"].GetSlotNames(ref names);
        CollectionAssert.AreEqual(new[] { "a", "b", "c" }, names.DenseValues().Select(x => x.ToString()).ToArray());
        Assert.IsFalse(data.Schema["Each"].HasSlotNames());
        CollectionAssert.AreEqual(new[] { 5f, 6 }, data.GetColumn<float[]>("Each").Last());
        CollectionAssert.AreEqual(new[] { 3, 1 }, data.GetColumn<int[]>("Two").First());
    }

    [TestMethod]
    public void KeysCountFromZeroAndMissingRealsMayBeNaN()
    {
        var ml = new MLContext(1);
        IDataView data = Load(ml, "0\t1\n2\t\n?\t5\n7\t6\n", new TextLoader.Options
        {
            MissingRealsAsNaNs = true,
            Columns =
            [
                new TextLoader.Column("Key", DataKind.UInt32, [new TextLoader.Range(0)], new KeyCount(3)),
                new TextLoader.Column("Real", DataKind.Single, 1),
            ],
        });
        Assert.AreEqual("Key<UInt32, 0-2>", data.Schema["Key"].Type.ToString());
        CollectionAssert.AreEqual(new uint[] { 1, 3, 0, 0 }, data.GetColumn<uint>("Key").ToArray());
        CollectionAssert.AreEqual(new[] { 1, float.NaN, 5, 6 }, data.GetColumn<float>("Real").ToArray());
    }

    [TestMethod]
    public void BadValuesAreMissingAndLogged()
    {
        var ml = new MLContext(1);
        var log = new List<string>();
        ml.Log += (_, message) =>
        {
            if (message.Kind != ChannelMessageKind.Trace)
            {
                lock (log)
                    log.Add(message.RawMessage);
            }
        };
        IDataView data = Load(ml, "abc\n// a comment\n2\n", new TextLoader.Options { Columns = [new TextLoader.Column("Real", DataKind.Single, 0)] });
        CollectionAssert.AreEqual(new[] { float.NaN, 2 }, data.GetColumn<float>("Real").ToArray());
        CollectionAssert.AreEqual(new[] { "  Bad value at line 1 in column Real", "Processed 2 rows with 1 bad values and 0 format errors" }, log);
    }

    [TestMethod]
    public void ABlockWithAValueThatCannotBeIsNotHandedOut()
    {
        var ml = new MLContext(1);
        string text = string.Concat(Enumerable.Range(0, 100).Select(i => i == 90 ? "x\n" : i + "\n"));
        TextLoader.Column[] columns = [new("Id", DataKind.Int32, 0)];
        int read = 0;
        FormatException inBlocks = Assert.ThrowsExactly<FormatException>(() => Count(Load(ml, text, new TextLoader.Options { Columns = columns })));
        Assert.AreEqual(64, read);
        Assert.AreEqual("Parsing failed with an exception: Could not parse value x in line 91, column Id", inBlocks.Message);
        Assert.ThrowsExactly<InvalidOperationException>(() => Count(Load(ml, text, new TextLoader.Options { Columns = columns, UseThreads = false })));
        Assert.AreEqual(90, read);

        void Count(IDataView data)
        {
            read = 0;
            foreach (int _ in data.GetColumn<int>("Id"))
                read++;
        }
    }

    [TestMethod]
    public void FilesSayThemselvesHowToReadThem()
    {
        var ml = new MLContext(1);
        IDataView data = ml.Data.LoadFromEnumerable(new[] { new Row { Name = "ab", Key = 2, Values = [1, 2, 3] }, new Row { Name = "", Key = 9, Values = [0, 0, 0.5f] } });
        string file = Path.Combine(Directory.CreateTempSubdirectory().FullName, "data.txt");
        using (FileStream stream = File.Create(file))
            ml.Data.SaveAsText(data, stream, separatorChar: ';', forceDense: true);
        IDataView read = ml.Data.LoadFromTextFile(file);
        Assert.AreEqual("Name: String; Key: Key<UInt32, 0-3>; Values: Vector<Single, 3>", string.Join("; ", read.Schema.Select(column => $"{column.Name}: {column.Type}")));
        CollectionAssert.AreEqual(new uint[] { 3, 0 }, read.GetColumn<uint>("Key").ToArray());
        CollectionAssert.AreEqual(new[] { 0, 0, 0.5f }, read.GetColumn<float[]>("Values").Last());
    }

    [TestMethod]
    public void WrongOptionsAreRefused()
    {
        var ml = new MLContext(1);
        TextLoader.Column[] columns = [new("Real", DataKind.Single, 0)];
        foreach (TextLoader.Options options in new TextLoader.Options[]
        {
            new() { Columns = columns, Separators = ['"'] },
            new() { Columns = columns, Separators = ['7'] },
            new() { Columns = columns, Separators = [':'], AllowSparse = true },
            new() { Columns = columns, DecimalMarker = ';' },
            new() { Columns = columns, DecimalMarker = ',', Separators = [','] },
            new() { Columns = columns, Separators = ['!'], EscapeChar = '!' },
            new() { Columns = [new("Twice", DataKind.Single, [new TextLoader.Range(0, 3), new TextLoader.Range(2)])] },
        })
            Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Load(ml, "1\n", options));
        Assert.ThrowsExactly<InvalidOperationException>(() => ml.Data.CreateTextLoader<Row>());
    }

    private sealed class Row
    {
        public string Name { get; set; } = "";

        [KeyType(4)]
        public uint Key { get; set; }

        [VectorType(3)]
        public float[] Values { get; set; } = [];
    }
}
