// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Text;
using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Data views are lazy, can be read many times at once, and say no as the real ones do.</summary>
[TestClass]
public sealed class MlNetCursorTests
{
    private static readonly MLContext Ml = new(1);

    private static IDataView Numbers(int count = 10)
        => Ml.Data.LoadFromEnumerable(Enumerable.Range(0, count).Select(i => new Number { Id = i, Value = i % 3 == 0 ? float.NaN : i, Text = "t" + i }).ToList());

    [TestMethod]
    public void NothingIsReadBeforeACursorMoves()
    {
        int read = 0;
        IEnumerable<Number> Rows()
        {
            read++;
            yield return new Number { Id = 7 };
        }

        IDataView data = Ml.Data.TakeRows(Ml.Data.FilterRowsByColumn(Ml.Data.LoadFromEnumerable(Rows()), "Value", lowerBound: -1), 5);
        Assert.AreEqual(0, read);
        Assert.IsNull(data.GetRowCount());
        Assert.AreEqual(7, data.GetColumn<int>("Id").Single());
        Assert.AreEqual(7, data.GetColumn<int>("Id").Single());
        Assert.AreEqual(2, read);
    }

    [TestMethod]
    public void CursorsOfOneViewAreIndependent()
    {
        IDataView data = Numbers();
        using DataViewRowCursor first = data.GetRowCursor(data.Schema);
        using DataViewRowCursor second = data.GetRowCursor([data.Schema["Id"]]);
        ValueGetter<int> one = first.GetGetter<int>(data.Schema["Id"]), other = second.GetGetter<int>(data.Schema["Id"]);
        int a = -1, b = -1;
        Assert.AreEqual(-1, first.Position);
        Assert.IsTrue(first.MoveNext() && first.MoveNext() && second.MoveNext());
        one(ref a);
        other(ref b);
        Assert.AreEqual((1, 0, 1L, 0L), (a, b, first.Position, second.Position));
        while (second.MoveNext())
            other(ref b);
        Assert.AreEqual(9, b);
        Assert.AreEqual(-1, second.Position);
        Assert.IsFalse(second.MoveNext());
        one(ref a);
        Assert.AreEqual(1, a);
    }

    [TestMethod]
    public void CursorSetsGiveEveryRowOnce()
    {
        IDataView data = Ml.Transforms.CopyColumns("Copy", "Id").Fit(Numbers(100)).Transform(Numbers(100));
        var seen = new List<int>();
        foreach (DataViewRowCursor cursor in data.GetRowCursorSet(data.Schema, 3))
        {
            using (cursor)
            {
                ValueGetter<int> getter = cursor.GetGetter<int>(data.Schema["Copy"]);
                int value = 0;
                while (cursor.MoveNext())
                {
                    getter(ref value);
                    seen.Add(value);
                }
            }
        }

        CollectionAssert.AreEquivalent(Enumerable.Range(0, 100).ToArray(), seen);
    }

    [TestMethod]
    public void InactiveColumnsAndWrongTypesAreRefused()
    {
        IDataView objects = Numbers();
        using (DataViewRowCursor cursor = objects.GetRowCursor([objects.Schema["Id"]]))
        {
            Assert.IsTrue(cursor.IsColumnActive(objects.Schema["Id"]));
            Assert.IsFalse(cursor.IsColumnActive(objects.Schema["Text"]));
            Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => cursor.GetGetter<ReadOnlyMemory<char>>(objects.Schema["Text"]));
            Assert.ThrowsExactly<InvalidOperationException>(() => cursor.GetGetter<long>(objects.Schema["Id"]));
        }

        IDataView mapped = Ml.Transforms.CopyColumns("Copy", "Id").Fit(objects).Transform(objects);
        using (DataViewRowCursor cursor = mapped.GetRowCursor([mapped.Schema["Copy"]]))
        {
            Assert.IsFalse(cursor.IsColumnActive(mapped.Schema["Id"]));
            Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => cursor.GetGetter<int>(mapped.Schema["Id"]));
            Assert.ThrowsExactly<InvalidOperationException>(() => cursor.GetGetter<float>(mapped.Schema["Copy"]));
        }

        // None of the mapper's own columns: other words.
        using (DataViewRowCursor cursor = mapped.GetRowCursor([mapped.Schema["Id"]]))
        {
            Assert.ThrowsExactly<InvalidOperationException>(() => cursor.GetGetter<int>(mapped.Schema["Copy"]));
        }
    }

    [TestMethod]
    public void RowIdsFollowTheirRows()
    {
        IDataView data = Numbers();
        UInt128 Id(IDataView view, int row)
        {
            using DataViewRowCursor cursor = view.GetRowCursor(view.Schema);
            ValueGetter<DataViewRowId> getter = cursor.GetIdGetter();
            DataViewRowId id = default;
            while (cursor.MoveNext())
            {
                getter(ref id);
                if (row-- == 0)
                    return new UInt128(id.High, id.Low);
            }

            throw new InvalidOperationException("no such row");
        }

        Assert.AreEqual(UInt128.Zero, Id(data, 0));
        Assert.AreEqual(Id(data, 4), Id(Ml.Data.SkipRows(data, 3), 1));
        Assert.AreEqual(Id(data, 2), Id(Ml.Data.FilterRowsByMissingValues(data, "Value"), 1));
    }

    [TestMethod]
    public void FiltersKeepTheRightRows()
    {
        IDataView data = Numbers();
        int[] Ids(IDataView view) => view.GetColumn<int>("Id").ToArray();
        CollectionAssert.AreEqual(new[] { 1, 2, 4, 5, 7, 8 }, Ids(Ml.Data.FilterRowsByMissingValues(data, "Value")));
        CollectionAssert.AreEqual(new[] { 2, 4 }, Ids(Ml.Data.FilterRowsByColumn(data, "Value", lowerBound: 2, upperBound: 5)));
        // The predicate says which rows go.
        CollectionAssert.AreEqual(new[] { 0, 1, 2 }, Ids(Ml.Data.FilterByCustomPredicate<Number>(data, row => row.Id > 2)));
        CollectionAssert.AreEqual(new[] { 0, 1, 2 }, Ids(Ml.Data.TakeRows(data, 3)));
        CollectionAssert.AreEqual(new[] { 9 }, Ids(Ml.Data.SkipRows(data, 9)));
        Assert.IsEmpty(Ids(Ml.Data.SkipRows(data, 99)));
        Assert.AreEqual(10, data.GetRowCount());
    }

    [TestMethod]
    public void CachesReadTheirSourceOnce()
    {
        int read = 0;
        IEnumerable<Number> Rows()
        {
            read++;
            for (int i = 0; i < 5; i++)
                yield return new Number { Id = i, Text = "t" + i, Vector = [i, -i] };
        }

        IDataView cached = Ml.Data.Cache(Ml.Data.LoadFromEnumerable(Rows()));
        for (int i = 0; i < 3; i++)
        {
            List<Number> rows = Ml.Data.CreateEnumerable<Number>(cached, false).ToList();
            CollectionAssert.AreEqual(new[] { 0, 1, 2, 3, 4 }, rows.Select(row => row.Id).ToArray());
            CollectionAssert.AreEqual(new[] { 3f, -3f }, rows[3].Vector);
            Assert.AreEqual("t4", rows[4].Text);
        }

        Assert.AreEqual(1, read);
        int[] shuffled = Ml.Data.ShuffleRows(cached, seed: 1).GetColumn<int>("Id").ToArray();
        CollectionAssert.AreEquivalent(new[] { 0, 1, 2, 3, 4 }, shuffled);
    }

    [TestMethod]
    public void EnumerablesReuseTheirRowObjectWhenTold()
    {
        IDataView data = Numbers(3);
        Assert.AreEqual(1, Ml.Data.CreateEnumerable<Number>(data, reuseRowObject: true).Distinct().Count());
        Assert.AreEqual(3, Ml.Data.CreateEnumerable<Number>(data, reuseRowObject: false).Distinct().Count());
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Ml.Data.CreateEnumerable<More>(data, false));
        Assert.AreEqual(2, Ml.Data.CreateEnumerable<More>(data, false, ignoreMissingColumns: true).Last().Id);
        Assert.ThrowsExactly<InvalidOperationException>(() => Ml.Data.CreateEnumerable<WrongType>(data, false));
    }

    [TestMethod]
    public void KeysOfObjectsCountFromZeroAndOutsideIsMissing()
    {
        IDataView data = Ml.Data.LoadFromEnumerable(new uint[] { 0, 1, 2, 3, 99 }.Select(i => new Keyed { Key = i }).ToList());
        Assert.AreEqual("Key<UInt32, 0-2>", data.Schema["Named"].Type.ToString());
        CollectionAssert.AreEqual(new uint[] { 1, 2, 3, 0, 0 }, data.GetColumn<uint>("Named").ToArray());
        Assert.IsNull(data.Schema.GetColumnOrNull("Ignored"));
    }

    [TestMethod]
    public void SchemaDefinitionsChangeNamesTypesAndAnnotations()
    {
        SchemaDefinition definition = SchemaDefinition.Create(typeof(Number));
        definition["Vector"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, 2);
        definition["Vector"].AddAnnotation("SlotNames", new[] { "a", "b" }, new VectorDataViewType(TextDataViewType.Instance, 2));
        definition["Id"].ColumnName = "Other";
        IDataView data = Ml.Data.LoadFromEnumerable(new[] { new Number { Id = 4, Vector = [1, 2] } }, definition);
        Assert.AreEqual("Other: Int32", data.Schema[0].ToString());
        Assert.AreEqual("Vector: Vector<Single, 2> {SlotNames}", data.Schema["Vector"].ToString());
        VBuffer<ReadOnlyMemory<char>> names = default;
        data.Schema["Vector"].GetSlotNames(ref names);
        Assert.AreEqual("b", names.GetItemOrDefault(1).ToString());
        Assert.IsNull(definition["Nope"]);
    }

    [TestMethod]
    public void PredictionEnginesMapOneObjectAtATime()
    {
        IDataView data = Numbers();
        ITransformer model = Ml.Transforms.Conversion.MapValueToKey("Key", "Text").Fit(data);
        using PredictionEngine<Number, Output> engine = Ml.Model.CreatePredictionEngine<Number, Output>(model);
        Assert.AreEqual(4u, engine.Predict(new Number { Text = "t3" }).Key);
        Assert.AreEqual(0u, engine.Predict(new Number { Text = "unknown" }).Key);
        var reused = new Output();
        Output same = reused;
        engine.Predict(new Number { Text = "t0", Id = 5 }, ref reused);
        Assert.AreSame(same, reused);
        Assert.AreEqual((1u, 5), (reused.Key, reused.Id));
        Assert.AreEqual("Key", engine.OutputSchema.Last().Name);
        Assert.ThrowsExactly<ArgumentNullException>(() => engine.Predict(null!));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Ml.Model.CreatePredictionEngine<Number, More>(model, ignoreMissingColumns: false));
    }

    [TestMethod]
    public void WrittenTextReadsBackAlike()
    {
        IDataView data = Ml.Data.LoadFromEnumerable(new[]
        {
            new Number { Id = 1, Value = 0.1f, Text = "plain", Vector = [1, 2] },
            new Number { Id = -5, Value = float.NaN, Text = "say \"hi\"\tthere", Vector = [0, 0] },
            new Number { Id = 0, Value = 0, Text = "", Vector = [float.MaxValue, 1e-7f] },
        }, Fixed());
        foreach (bool dense in new[] { true, false })
        {
            using var stream = new MemoryStream();
            Ml.Data.SaveAsText(data, stream, forceDense: dense);
            string file = Path.GetTempFileName();
            try
            {
                File.WriteAllBytes(file, stream.ToArray());
                IDataView read = Ml.Data.LoadFromTextFile(file, new TextLoader.Options
                {
                    HasHeader = true,
                    AllowQuoting = true,
                    AllowSparse = true,
                    Columns =
                    [
                        new TextLoader.Column("Id", DataKind.Int32, 0),
                        new TextLoader.Column("Value", DataKind.Single, 1),
                        new TextLoader.Column("Text", DataKind.String, 2),
                        new TextLoader.Column("Vector", DataKind.Single, 3, 4),
                    ],
                });
                Assert.AreEqual(Describe(data), Describe(read), Encoding.UTF8.GetString(stream.ToArray()));
            }
            finally
            {
                File.Delete(file);
            }
        }

        static string Describe(IDataView view) => string.Join("\n", Ml.Data.CreateEnumerable<Number>(view, false, true)
            .Select(row => FormattableString.Invariant($"{row.Id}|{row.Value:R}|{row.Text}|{string.Join(",", row.Vector)}")));
    }

    private static SchemaDefinition Fixed()
    {
        SchemaDefinition definition = SchemaDefinition.Create(typeof(Number));
        definition["Vector"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, 2);
        return definition;
    }

    private class Number
    {
        public int Id;
        public float Value;
        public string Text = "";
        public float[] Vector = [];
    }

    private sealed class More : Number
    {
        public string Extra { get; set; } = "";
    }

    private sealed class WrongType
    {
        public string Id = "";
    }

    private sealed class Output
    {
        public uint Key { get; set; }

        public int Id { get; set; }
    }

    private sealed class Keyed
    {
        [KeyType(3)]
        [ColumnName("Named")]
        public uint Key { get; set; }

        [NoColumn]
        public object? Ignored { get; set; }
    }
}
