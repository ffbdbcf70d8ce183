"""The recipe runs; figures are no tests."""

from recipes.benchmark import processes as benchmark_processes


def test_a_table_with_a_row_for_each_size_and_adversary(tmp_path):
    benchmark_processes.main(["--batch", "12", "--steps", "1", "--sizes", "2", "--output-dir", str(tmp_path)])
    table = (tmp_path / "benchmark_processes.csv").read_text()
    assert all(f"2,{name}," in table for name in benchmark_processes.ADVERSARIES)
