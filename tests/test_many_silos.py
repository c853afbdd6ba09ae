"""The benchmark of rounds with many silos, small: it checks the sum itself, and its page and picture come out."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from benchmarks import many_silos, many_silos_page

CASES = [
    {
        "n": n,
        "h": 27,
        "t": 20,
        "k": 42.1,
        "lost": 3,
        "silo_seconds_median": seconds,
        "silo_seconds_max": 2 * seconds,
        "bytes_sent": 509_283,
        "bytes_received": 299_495,
        "check_seconds_median": 0.0214,
        "check_bytes_received": 52_000,
        "coordinator_seconds": 0.17,
        "peak_rss_mb": 53.2,
    }
    for n, seconds in ((64, 0.0351), (1000, 0.0005))
]


def test_round_of_80_silos_of_whom_4_vanish_gives_the_right_sum():
    found = many_silos.case(80, words=2000, lost=0.05)
    assert found["lost"] == 4
    assert 76 <= found["summed"] <= 80
    assert found["h"] < found["k"] < 79
    # As bytes: the update, and something for each neighbour, both ways.
    assert found["bytes_sent"] > 4 * 2000 + found["k"] * 1200
    assert found["bytes_received"] > found["k"] * 2400
    # Everybody reads a nonce and a check word of every member.
    assert found["check_bytes_received"] > found["summed"] * 600


def test_wrong_sum_is_noticed(tmp_path):
    this = many_silos.Round(12, words=50, lost=0.0, seed=1, folder=tmp_path, sparse_from=12)
    this.play()
    this.sums[0][3] ^= 1
    with pytest.raises(RuntimeError, match="not the plain sum"):
        this.check()


def test_silos_missing_from_the_list_are_noticed(tmp_path):
    this = many_silos.Round(12, words=50, lost=0.0, seed=1, folder=tmp_path, sparse_from=12)
    this.play()
    this.added.discard("silo-0003")
    with pytest.raises(RuntimeError, match="left out"):
        this.check()


def test_picture_is_an_svg_whose_points_rise_with_the_figures():
    tree = ElementTree.fromstring(many_silos_page.plot(CASES))
    circles = [item for item in tree.iter() if item.tag.endswith("circle")]
    assert len(circles) == 4
    (low, high) = (float(circle.get("cy")) for circle in circles[:2])
    assert low < high  # 0.0351 s stands higher on the page than 0.0005 s
    assert all(float(a.get("cx")) < float(b.get("cx")) for a, b in pairwise(circles[:2]))


def test_table_replaces_what_stands_between_the_marks_and_nothing_else():
    page = f"before\n{many_silos_page.BEGIN}\nold\n{many_silos_page.END}\nafter\n"
    made = many_silos_page.with_table(page, CASES)
    assert made.startswith("before\n") and made.endswith("\nafter\n")
    assert "old" not in made
    assert "| 64 | 27 | 20 | 42 | 3 | 0.035 | 0.070 | 0.51 | 0.30 | 0.021 | 0.05 | 0.2 | 53 |" in made
    assert many_silos_page.with_table(made, CASES) == made
    with pytest.raises(ValueError, match="figures"):
        many_silos_page.with_table("no marks", CASES)


def test_command_writes_lines_picture_and_table(tmp_path, capsys):
    page, picture = tmp_path / "page.md", tmp_path / "picture.svg"
    page.write_text(f"{many_silos_page.BEGIN}\n{many_silos_page.END}\n")
    command = ["--json", "--silos", "64", "--words", "10", "--plot", str(picture), "--table", str(page)]
    assert many_silos.main(command) == 0
    assert '"n": 64' in capsys.readouterr().out
    assert "| 64 |" in page.read_text()
    assert picture.read_text().startswith("<svg")
