// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Reflection;
using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Column types, schemas and buffers.</summary>
[TestClass]
public sealed class MlNetSchemaTests
{
    [TestMethod]
    public void TypesAreEqualByWhatTheyHold()
    {
        Assert.AreEqual(new KeyDataViewType(typeof(uint), 5), new KeyDataViewType(typeof(uint), 5));
        Assert.AreNotEqual(new KeyDataViewType(typeof(uint), 5), new KeyDataViewType(typeof(uint), 6));
        Assert.AreNotEqual(new KeyDataViewType(typeof(uint), 5), new KeyDataViewType(typeof(ulong), 5));
        Assert.AreEqual(new VectorDataViewType(NumberDataViewType.Single, 3), new VectorDataViewType(NumberDataViewType.Single, 3));
        Assert.AreNotEqual(new VectorDataViewType(NumberDataViewType.Single, 6), new VectorDataViewType(NumberDataViewType.Single, 2, 3));
        Assert.IsFalse(NumberDataViewType.UInt32.Equals(new KeyDataViewType(typeof(uint), 5)));
    }

    [TestMethod]
    public void TypesNameThemselves()
    {
        Assert.AreEqual("Key<UInt32, 0-4>", new KeyDataViewType(typeof(uint), 5).ToString());
        Assert.AreEqual("Vector<Single>", new VectorDataViewType(NumberDataViewType.Single).ToString());
        Assert.AreEqual("Vector<Key<Byte, 0-1>, 3>", new VectorDataViewType(new KeyDataViewType(typeof(byte), 2), 3).ToString());
        Assert.AreEqual("Vector<Double, 2, *>", new VectorDataViewType(NumberDataViewType.Double, 2, 0).ToString());
        Assert.AreEqual("String Boolean DateTime DateTimeOffset TimeSpan DataViewRowId", string.Join(' ', TextDataViewType.Instance, BooleanDataViewType.Instance,
            DateTimeDataViewType.Instance, DateTimeOffsetDataViewType.Instance, TimeSpanDataViewType.Instance, RowIdDataViewType.Instance));
    }

    [TestMethod]
    public void KeysHaveACount()
    {
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => new KeyDataViewType(typeof(uint), 0));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => new KeyDataViewType(typeof(byte), 256));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => new KeyDataViewType(typeof(int), 2));
        Assert.AreEqual(255ul, new KeyDataViewType(typeof(byte), 255).Count);
    }

    [TestMethod]
    public void OfColumnsWithOneNameTheLastIsVisible()
    {
        var builder = new DataViewSchema.Builder();
        builder.AddColumn("A", NumberDataViewType.Int32);
        builder.AddColumn("B", NumberDataViewType.Int32);
        builder.AddColumn("A", TextDataViewType.Instance);
        DataViewSchema schema = builder.ToSchema();
        CollectionAssert.AreEqual(new[] { true, false, false }, schema.Select(column => column.IsHidden).ToArray());
        Assert.AreEqual(2, schema["A"].Index);
        Assert.IsNull(schema.GetColumnOrNull("C"));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => schema["C"]);
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => schema[3]);
        Assert.ThrowsExactly<ArgumentNullException>(() => schema.GetColumnOrNull(""));
        Assert.AreEqual("3 columns", schema.ToString());
    }

    [TestMethod]
    public void AnnotationsCheckTheirTypes()
    {
        var builder = new DataViewSchema.Annotations.Builder();
        Assert.ThrowsExactly<ArgumentException>(() => builder.AddPrimitiveValue("A", NumberDataViewType.Int32, 1f));
        Assert.ThrowsExactly<TargetInvocationException>(() => builder.Add("A", NumberDataViewType.Int32, (Delegate)((ref float value) => value = 1)));
        builder.AddPrimitiveValue("A", NumberDataViewType.Int32, 4);
        DataViewSchema.Annotations annotations = builder.ToAnnotations();
        int found = 0;
        annotations.GetValue("A", ref found);
        Assert.AreEqual(4, found);
        float wrong = 0;
        Assert.ThrowsExactly<InvalidOperationException>(() => annotations.GetValue("A", ref wrong));
        Assert.ThrowsExactly<InvalidOperationException>(() => annotations.GetValue("B", ref found));
        Assert.IsEmpty(DataViewSchema.Annotations.Empty.Schema);
    }

    [TestMethod]
    public void ChainsHideColumnsWhereTheyReplaceThem()
    {
        var ml = new MLContext(1);
        IDataView data = ml.Data.LoadFromEnumerable(new[] { new Row { Label = "x", X = 1 } });
        var pipeline = ml.Transforms.Conversion.MapValueToKey("Label").Append(ml.Transforms.Conversion.MapKeyToValue("Back", "Label"));
        DataViewSchema schema = pipeline.Fit(data).Transform(data).Schema;
        Assert.AreEqual("Label:True Label:False X:False Back:False", string.Join(' ', schema.Select(column => $"{column.Name}:{column.IsHidden}")));
    }

    [TestMethod]
    public void SparseBuffersReadAsDenseOnes()
    {
        var sparse = new VBuffer<int>(6, 2, [7, 9], [1, 4]);
        CollectionAssert.AreEqual(new[] { 0, 7, 0, 0, 9, 0 }, sparse.DenseValues().ToArray());
        Assert.AreEqual((7, 0, 9), (sparse.GetItemOrDefault(1), sparse.GetItemOrDefault(2), sparse.GetItemOrDefault(4)));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => sparse.GetItemOrDefault(6));
        VBuffer<int> part = default;
        sparse.CopyTo(ref part, 1, 4);
        CollectionAssert.AreEqual(new[] { 7, 0, 0, 9 }, part.DenseValues().ToArray());
        int[] target = [5, 5, 5, 5, 5, 5, 5, 5];
        sparse.CopyTo(target, 1, -1);
        CollectionAssert.AreEqual(new[] { 5, -1, 7, -1, -1, 9, -1, 5 }, target);
        CollectionAssert.AreEqual(new[] { 1, 4 }, sparse.Items().Select(item => item.Key).ToArray());
        Assert.AreEqual(6, sparse.Items(all: true).Count());
        Assert.AreEqual("Sparse vector of size 6, 2 explicit values", sparse.ToString());
    }

    [TestMethod]
    public void EditorsReuseArrays()
    {
        VBuffer<float> buffer = default;
        VBufferEditor<float> editor = VBufferEditor.Create(ref buffer, 4);
        Assert.IsTrue(editor.CreatedNewValues);
        editor.Values[3] = 2;
        buffer = editor.Commit();
        editor = VBufferEditor.Create(ref buffer, 3);
        Assert.IsFalse(editor.CreatedNewValues);
        buffer = editor.Commit();
        Assert.AreEqual((3, true), (buffer.Length, buffer.IsDense));
        editor = VBufferEditor.Create(ref buffer, 100, 2);
        editor.Values[0] = 1;
        editor.Indices[0] = 50;
        buffer = editor.CommitTruncated(1);
        Assert.AreEqual((100, 1, 1f), (buffer.Length, buffer.GetValues().Length, buffer.GetItemOrDefault(50)));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => VBufferEditor.Create(ref buffer, 2, 3).Commit());
    }

    private sealed class Row
    {
        public string Label = "";
        public float X;
    }
}
