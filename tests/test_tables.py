"""Reading data files: what is read, and that every error names the place."""

import sys
import zipfile

import numpy as np
import pytest

from jaxem import tables
from jaxem.tables import TableError


@pytest.fixture
def write(tmp_path):
    def write(text, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_csv_with_a_header(write):
    table = tables.read(write("a, b\n1,2\n 3,4e1 \n\n5,-.5\n"))
    assert table.columns == ("a", "b")
    assert table.x.dtype == np.float64
    np.testing.assert_array_equal(table.x, [[1, 2], [3, 40], [5, -0.5]])
    assert table.weights is None
    assert table.left_out == ()


def test_csv_without_a_header(write):
    table = tables.read(write("1,2\n3,4\n"))
    assert table.columns == ("x0", "x1")
    np.testing.assert_array_equal(table.x, [[1, 2], [3, 4]])


def test_a_header_may_hold_years(write):
    table = tables.read(write("place,2019,2020\nx,1,2\ny,3,4\n".replace("x", "7").replace("y", "8")))
    assert table.columns == ("place", "2019", "2020")


def test_labels_without_a_header_are_left_out(write):
    table = tables.read(write("1,2,setosa\n3,4,virginica\n"))
    assert table.columns == ("x0", "x1")
    assert table.left_out == (("x2", "'setosa' in row 0 (line 1) is not a number"),)


def test_quoted_fields_bom_and_windows_line_ends(write):
    table = tables.read(write('\ufeff"a,\nb",c\r\n"1.5",2\r\n3,"4"\r\n'))
    assert table.columns == ("a,\nb", "c")
    np.testing.assert_array_equal(table.x, [[1.5, 2], [3, 4]])


def test_tsv(write):
    np.testing.assert_array_equal(tables.read(write("a\tb\n1\t2\n", "data.tsv")).x, [[1, 2]])


def test_row_numbers_are_left_out(write):
    table = tables.read(write(",a\n0,5\n1,7\n2,6\n"))
    assert table.columns == ("a",)
    assert "counts the rows" in table.left_out[0][1]
    assert tables.read(write(",a\n0,5\n2,7\n1,6\n")).columns == ("column 0", "a")


def test_columns_by_name_and_by_number_in_the_order_asked_for(write):
    path = write("a,b,c,d\n1,2,x,4\n5,6,y,8\n")
    np.testing.assert_array_equal(tables.read(path, columns=["d", "a"]).x, [[4, 1], [8, 5]])
    np.testing.assert_array_equal(tables.read(path, columns=["1", 3]).x, [[2, 4], [6, 8]])


def test_weights_are_a_column_of_their_own(write):
    table = tables.read(write("a,n\n1,10\n2,20\n"), weights="n")
    assert table.columns == ("a",)
    np.testing.assert_array_equal(table.weights, [10, 20])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("\n\n", {}, "is empty"),
        ("a,b\n", {}, "a header ('a', 'b') but no rows"),
        ("a,b\n1,2\n3\n", {}, "line 3: 1 cells where the first line has 2"),
        ("a,b\n1,2\n3,4,5\n", {"columns": ["a"]}, "line 3: 3 cells where the first line has 2"),
        ("a,b\n1,2\n3,\n", {}, "row 1 (line 3), column 'b': the value is missing"),
        ("a,b\n1,NA\n\n3,nan\n", {}, "row 0 (line 2), column 'b': the value is missing; 2 of 2 rows"),
        ("a,b\n1,2\n3,inf\n", {}, "row 1 (line 3), column 'b': the value is inf"),
        ("a,b\n1,2\n3,x4\n", {"columns": ["b"]}, "row 1 (line 3), column 'b': 'x4' is not a number"),
        ("a,b\n1,2\n3,1_0\n", {"columns": ["b"]}, "'1_0' is not a number"),
        ("a,b\n1,2\n", {"columns": ["c"]}, "no column 'c'; its 2 columns are 'a', 'b'"),
        ("a,b\n1,2\n", {"columns": ["2"]}, "no column '2'"),
        ("a,a\n1,2\n", {"columns": ["a"]}, "2 columns named 'a'"),
        ("a,b\n1,2\n", {"columns": ["a", "0"]}, "column 'a' is asked for twice"),
        ("a,b\n1,2\n", {"columns": []}, "the list of columns is empty"),
        ("a,b\n1,2\n", {"columns": ["a"], "weights": "a"}, "cannot hold the weights and be fitted too"),
        ("a,b\nx,y\n", {}, "no column of numbers"),
        ("a;b\n1;2\n", {}, "parted by ','"),
        (b"a,b\n\xff\xfe,2\n", {}, "is not text in UTF-8"),
        ('a,b\n"1,2\n', {}, "line 2"),
    ],
)
def test_errors_in_text_name_the_place(write, text, options, message):
    path = write(text)
    with pytest.raises(TableError) as caught:
        tables.read(path, **options)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_text_column_is_left_out_with_the_first_value_that_is_not_a_number(write):
    table = tables.read(write("a,b\n1,2\n3,12a\n5,NA\n"))
    assert table.columns == ("a",)
    assert table.left_out == (("b", "'12a' in row 1 (line 3) is not a number"),)


def test_files_that_cannot_be_read(tmp_path, write):
    with pytest.raises(TableError, match="no such file"):
        tables.read(tmp_path / "none.csv")
    with pytest.raises(TableError, match="is a directory"):
        tables.read(tmp_path)
    with pytest.raises(TableError, match=r"'\.xls'; files that can be read end in \.csv, \.tsv, \.npy"):
        tables.read(write("1", "data.xls"))
    with pytest.raises(TableError, match="has no ending"):
        tables.read(write("1", "data"))


@pytest.mark.parametrize("array", [np.arange(6).reshape(3, 2), np.asfortranarray([[1.5, 2], [3, 4]], np.float32)])
def test_npy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    table = tables.read(tmp_path / "a.npy")
    np.testing.assert_array_equal(table.x, array)
    assert table.x.dtype == np.float64
    assert table.columns == ("x0", "x1")


def test_npy_of_one_dimension_is_one_column(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    assert tables.read(tmp_path / "a.npy").x.shape == (3, 1)


def test_npz(tmp_path):
    np.savez(tmp_path / "one.npz", values=np.eye(2))
    np.savez_compressed(tmp_path / "two.npz", x=np.ones((3, 1)), y=np.zeros(5))
    np.savez(tmp_path / "none.npz", a=np.eye(2), b=np.eye(2))
    assert tables.read(tmp_path / "one.npz").x.shape == (2, 2)
    assert tables.read(tmp_path / "two.npz").x.shape == (3, 1)
    with pytest.raises(TableError, match="one named 'x'; its arrays are 'a', 'b'"):
        tables.read(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 2)), "expected rows and columns"),
        (np.zeros((0, 2)), "empty array"),
        (np.array(["a"]), "not one of plain numbers"),
        (np.array([1j]), "expected numbers"),
        (np.array([[1.0], [np.nan]]), "row 1, column 'x0': the value is missing"),
    ],
)
def test_arrays_that_are_no_tables(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(TableError, match=message):
        tables.read(tmp_path / "a.npy")


def test_damaged_arrays(tmp_path, write):
    np.save(tmp_path / "a.npy", np.arange(100.0))
    whole = (tmp_path / "a.npy").read_bytes()
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}, None]), allow_pickle=True)
    huge = whole.replace(b"(100,)", b"(9999999999999,)".ljust(6))[: len(whole)]
    for path in (write(whole[:200], "cut.npy"), objects, write(huge, "huge.npy"), write(b"nonsense", "no.npy")):
        with pytest.raises(TableError, match=path.name):
            tables.read(path)
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("x.npy", huge)
    with pytest.raises(TableError, match=r"bad\.npz"):
        tables.read(tmp_path / "bad.npz")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"a": [1, 2], "b": [0.5, None], "c": ["x", "y"], "d": [3.0, 4.0]}), path)
    table = tables.read(path, columns=["d", "a"])
    np.testing.assert_array_equal(table.x, [[3, 1], [4, 2]])
    with pytest.raises(TableError, match="row 1, column 'b': the value is missing"):
        tables.read(path)
    with pytest.raises(TableError, match="column 'c': its type is string"):
        tables.read(path, columns=["c"])
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(path.read_bytes()[:50])
    with pytest.raises(TableError, match="not a sound parquet file"):
        tables.read(cut)


def test_columns_of_every_kind(write):
    """Words become codes, numbers stay numbers unless they are said to be categories, and ids are left out."""
    text = "id,size,kind,ward\n" + "".join(f"n{i},{i / 4},{'ba'[i % 2]},{5 - 2 * (i % 2)}\n" for i in range(102))
    table = tables.read(write(text), values="mixed", categories=["ward"])
    assert table.columns == ("size", "kind", "ward")
    assert table.places == (1, 2, 3)
    assert table.categories == (None, ("a", "b"), ("3", "5"))
    assert table.left_out == (("id", "it has 102 different values, more than 100 categories"),)
    np.testing.assert_array_equal(table.x[:2], [[0, 1, 1], [0.25, 0, 0]])
    assert tables.read(write(text), values="mixed", categories=[3], columns=["ward"]).categories == (("3", "5"),)
    with pytest.raises(TableError, match=r"'0.25' in row 1 .* is neither a word nor a whole number"):
        tables.read(write(text), values="mixed", categories=["size"])


def test_booleans_of_parquet_are_words(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "data.parquet"
    columns = {"smokes": [True, None, False], "size": [1.5, 2, 3]}
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    table = tables.read(path, values="mixed", missing=True)
    assert table.categories == (("False", "True"), None)
    np.testing.assert_array_equal(table.x, [[1, 1.5], [np.nan, 2], [0, 3]])


def test_parquet_without_pyarrow_says_what_to_install(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TableError, match=r'pip install "jaxem\[parquet\]"'):
        tables.read(write("PAR1", "data.parquet"))


def test_numbers_are_read_the_same_by_both_readers(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 3)) * 10.0 ** np.arange(-100, 200, 100)
    path = tmp_path / "data.csv"
    path.write_text("a,b,c\n" + "\n".join(",".join(map(repr, row)) for row in x.tolist()))
    np.testing.assert_array_equal(tables.read(path).x, x)
    np.testing.assert_array_equal(tables.read(path, columns=["a", "b"]).x, x[:, :2])
