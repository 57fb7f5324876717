// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;

// Scores a large file with a saved model: rows stream through Transform in batches, so memory stays flat.
if (args.Length != 3)
{
    Console.Error.WriteLine("usage: BatchScoring MODEL.zip TEXTS.txt PREDICTIONS.tsv   (one text a line)");
    return 2;
}

var ml = new MLContext();
ITransformer model = ml.Model.Load(args[0], out DataViewSchema schema);
string column = schema.First(c => c.Type is TextDataViewType && c.Name != "Label").Name;
var loader = ml.Data.CreateTextLoader(new TextLoader.Options
{
    Columns = [new TextLoader.Column(column, DataKind.String, 0), new TextLoader.Column("Label", DataKind.String, 1)],
    Separators = ['\t'],
});
IDataView scored = model.Transform(loader.Load(new MultiFileSource(args[1])));

var clock = Stopwatch.StartNew();
long rows = 0;
string temporary = args[2] + ".tmp";
using (var writer = new StreamWriter(temporary))
using (DataViewRowCursor cursor = scored.GetRowCursor([scored.Schema[column], scored.Schema["PredictedLabel"], scored.Schema["Score"]]))
{
    var text = cursor.GetGetter<ReadOnlyMemory<char>>(scored.Schema[column]);
    var label = cursor.GetGetter<ReadOnlyMemory<char>>(scored.Schema["PredictedLabel"]);
    var score = cursor.GetGetter<VBuffer<float>>(scored.Schema["Score"]);
    ReadOnlyMemory<char> words = default, answer = default;
    VBuffer<float> shares = default;
    for (; cursor.MoveNext(); rows++)
    {
        text(ref words);
        label(ref answer);
        score(ref shares);
        writer.WriteLine(FormattableString.Invariant($"{words}\t{answer}\t{shares.DenseValues().Max():0.0000}"));
    }
}
File.Move(temporary, args[2], overwrite: true);
Console.WriteLine(FormattableString.Invariant($"{rows} rows in {clock.Elapsed.TotalSeconds:0.0} s"));
return 0;
