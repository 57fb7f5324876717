// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>The batched view and the row mapper over a scorer that counts its calls.</summary>
[TestClass]
public sealed class ScoredViewTests
{
    private readonly MLContext _ml = new(1);
    private readonly LengthScorer _scorer = new();

    private IDataView Data(int rows = 10) => _ml.Data.LoadFromEnumerable(
        Enumerable.Range(0, rows).Select(i => new Row { Id = i, Text = new string('x', i % 4) }).ToArray());

    [TestMethod]
    public void RowsAreScoredInWindowsAndKeepTheirOrder()
    {
        var view = new ScoredView<string, int>(Data(), _scorer);
        CollectionAssert.AreEqual(Enumerable.Range(0, 10).Select(i => i % 4).ToArray(), view.GetColumn<int>("Length").ToArray());
        CollectionAssert.AreEqual(new[] { 4, 4, 2 }, _scorer.Calls);
    }

    [TestMethod]
    public void ColumnsThatPassThroughAreNotScored()
    {
        var view = new ScoredView<string, int>(Data(), _scorer);
        CollectionAssert.AreEqual(Enumerable.Range(0, 10).ToArray(), view.GetColumn<int>("Id").ToArray());
        Assert.IsEmpty(_scorer.Calls);
        // Nor is a cursor that wants no column at all.
        using DataViewRowCursor cursor = view.GetRowCursor([]);
        int rows = 0;
        while (cursor.MoveNext()) rows++;
        Assert.AreEqual(10, rows);
        Assert.IsEmpty(_scorer.Calls);
    }

    [TestMethod]
    public void TheTextNeedNotBeAskedForWithTheScore()
    {
        var view = new ScoredView<string, int>(Data(), _scorer);
        using DataViewRowCursor cursor = view.GetRowCursor([view.Schema["Length"]]);
        Assert.IsFalse(cursor.IsColumnActive(view.Schema["Text"]));
        Assert.IsTrue(cursor.IsColumnActive(view.Schema["Length"]));
        Assert.Throws<InvalidOperationException>(() => cursor.GetGetter<ReadOnlyMemory<char>>(view.Schema["Text"]));
    }

    [TestMethod]
    public void GettersOfTheWrongTypeOrColumnAreRefused()
    {
        var view = new ScoredView<string, int>(Data(), _scorer);
        using DataViewRowCursor cursor = view.GetRowCursor(view.Schema);
        var error = Assert.ThrowsExactly<InvalidOperationException>(() => cursor.GetGetter<float>(view.Schema["Length"]));
        StringAssert.Contains(error.Message, "'Length' holds Int32; it cannot be read as Single");
        ValueGetter<int> getter = cursor.GetGetter<int>(view.Schema["Length"]);
        int value = 0;
        Assert.ThrowsExactly<InvalidOperationException>(() => getter(ref value));
        var behind = new ScoredView<string, int>(view, new LengthScorer());
        Assert.ThrowsExactly<ArgumentException>(() => cursor.IsColumnActive(behind.Schema[behind.Schema.Count - 1]));
    }

    [TestMethod]
    public void RowCountsPositionsAndIdsAreTheSources()
    {
        IDataView data = Data();
        var view = new ScoredView<string, int>(data, _scorer);
        Assert.AreEqual(data.GetRowCount(), view.GetRowCount());
        Assert.IsFalse(view.CanShuffle);
        using DataViewRowCursor own = view.GetRowCursor(view.Schema), source = data.GetRowCursor(data.Schema);
        ValueGetter<DataViewRowId> ownId = own.GetIdGetter(), sourceId = source.GetIdGetter();
        while (source.MoveNext())
        {
            Assert.IsTrue(own.MoveNext());
            DataViewRowId a = default, b = default;
            ownId(ref a);
            sourceId(ref b);
            Assert.AreEqual((b, source.Position, source.Batch), (a, own.Position, own.Batch));
        }
        Assert.IsFalse(own.MoveNext());
    }

    [TestMethod]
    public void ASourceThatGrowsBetweenItsReadingsIsNamed()
    {
        int reading = 0;
        IEnumerable<Row> Rows()
        {
            int rows = reading++ == 0 ? 6 : 3;
            for (int i = 0; i < rows; i++) yield return new Row { Id = i };
        }

        var view = new ScoredView<string, int>(_ml.Data.LoadFromEnumerable(Rows()), _scorer);
        var error = Assert.ThrowsExactly<InvalidOperationException>(() => view.GetColumn<int>("Length").ToArray());
        StringAssert.Contains(error.Message, "must give the same rows each time");
    }

    [TestMethod]
    public void MappersScoreARowOnceHoweverManyColumnsAreRead()
    {
        IDataView data = Data();
        var mapper = new ScoredRowMapper<string, int>(data.Schema, _scorer);
        CollectionAssert.AreEqual(new[] { "Text" }, mapper.GetDependencies([mapper.OutputSchema["Length"]]).Select(c => c.Name).ToArray());
        CollectionAssert.AreEqual(new[] { "Id" }, mapper.GetDependencies([mapper.OutputSchema["Id"]]).Select(c => c.Name).ToArray());
        using DataViewRowCursor cursor = data.GetRowCursor(data.Schema);
        using DataViewRow row = mapper.GetRow(cursor, mapper.OutputSchema);
        ValueGetter<int> one = row.GetGetter<int>(row.Schema["Length"]), two = row.GetGetter<int>(row.Schema["Length"]);
        int value = 0;
        for (int i = 0; cursor.MoveNext(); i++)
        {
            one(ref value);
            Assert.AreEqual(i % 4, value);
            two(ref value);
            Assert.AreEqual(i % 4, value);
        }
        Assert.HasCount(10, _scorer.Calls);
    }

    private sealed class Row
    {
        public int Id { get; set; }

        public string Text { get; set; } = "";
    }

    private sealed class LengthScorer : IRowScorer<string, int>
    {
        public List<int> Calls { get; } = [];

        public IReadOnlyList<string> InputColumns => ["Text"];

        public int Window => 4;

        public IReadOnlyList<DataViewSchema.DetachedColumn> OutputColumns(DataViewSchema schema) => [new("Length", NumberDataViewType.Int32)];

        public Func<string> Reader(DataViewRow row)
        {
            ValueGetter<ReadOnlyMemory<char>> getter = row.GetGetter<ReadOnlyMemory<char>>(row.Schema["Text"]);
            return () =>
            {
                ReadOnlyMemory<char> text = default;
                getter(ref text);
                return text.ToString();
            };
        }

        public int[] Score(IReadOnlyList<string> rows)
        {
            Calls.Add(rows.Count);
            return [.. rows.Select(r => r.Length)];
        }

        public Delegate Getter(int column, Func<int> current) => (ValueGetter<int>)((ref int value) => value = current());
    }
}
