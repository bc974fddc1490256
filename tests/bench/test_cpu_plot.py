"""The picture comes from the committed rows, and a file without them is refused in one line."""

from __future__ import annotations

from bench import cpu_plot


def test_committed_rows_make_the_picture(tmp_path):
    target = tmp_path / "cpu.png"
    assert cpu_plot.main([str(cpu_plot.RESULTS / "cpu.csv"), str(target)]) == 0
    assert target.read_bytes()[:4] == b"\x89PNG" and target.stat().st_size > 20_000


def test_the_last_row_of_a_case_counts():
    keys = ("group", "shape", "dtype", "batch", "prompt", "new_tokens", "engine", "case")
    rows = [{**dict.fromkeys(keys, "x"), "seconds": seconds} for seconds in ("1", "2")]
    assert [row["seconds"] for row in cpu_plot.latest(rows)] == ["2"]


def test_engines_of_different_runs_do_not_stand_side_by_side():
    def row(batch: str, engine: str, seconds: str) -> dict[str, str]:
        return {"batch": batch, "engine": engine, "seconds": seconds}

    first = [row("1", "a", "1"), row("1", "b", "1"), row("8", "a", "1")]
    second = [row("1", "a", "2"), row("8", "a", "2"), row("8", "b", "2")]
    assert cpu_plot.fullest_runs([*first, *second]) == [*first[:2], *second[1:]]
    fours = [[row("1", name, seconds) for name in "abcd"] for seconds in "34"]
    fives = [row("1", name, "5") for name in "abcde"]
    runs = [*fives, *fours[0], *first, *fours[1], *second]
    assert cpu_plot.fullest_runs(runs)[:4] == fours[1]


def test_bad_input_is_one_line(tmp_path, capsys):
    empty = tmp_path / "cpu.csv"
    empty.write_text("group,shape\n")
    for arguments in ([str(tmp_path / "none.csv")], [str(empty)], ["a", "b", "c"]):
        assert cpu_plot.main(arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not empty.with_suffix(".png").exists()
