"""The table of CIFAR-10: what it asks the experiments for, and what it makes of it."""

import csv

import pytest

from experiments import alexnet_prune, cifar_table, seeds
from experiments.flags import parse


def row(seed, dense, pruned):
    made = dict.fromkeys(seeds.COLUMNS, 1) | {"seed": seed, "judged_on": "10 images"}
    return made | {"dense_error": dense, "error": pruned, "compression_params": 9}


def test_a_network_holds_within_one_deviation_of_the_dense_ones():
    """Dense accuracies 88, 90, 92: mean 90, sd 2; so 88 holds, and less does not."""
    dense = (12, 10, 8)
    at = [row(s, d, 12) for s, d in enumerate(dense)]
    below = [row(s, d, 12.01) for s, d in enumerate(dense)]
    made = cifar_table.row_of("vgg16", at)
    assert (made["dense_mean"], made["dense_sd"]) == ("90.000", "2.000")
    assert (made["pruned_mean"], made["pruned_sd"]) == ("88.000", "0.000")
    assert made["holds"] == "yes"
    assert cifar_table.row_of("vgg16", below)["holds"] == "no"


def test_it_runs_each_network_once_and_sums_its_seeds_up(tmp_path, monkeypatch, capsys):
    asked = []

    def run(name):
        def main(flags):
            config = parse(alexnet_prune.CONFIG, "test", "", flags)
            asked.append((name, config))
            table = tmp_path / name / "seeds.csv"
            assert config.run.out == table.parent
            for seed in range(config.run.seeds):
                seeds.add_row(table, row(seed, 10, 9 + seed))
            return 0

        return main

    for name in cifar_table.NETWORKS:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(
        cifar_table, "COMMANDS", {name: run(name) for name in cifar_table.NETWORKS}
    )
    out = tmp_path / "out.csv"
    flags = ["--seeds", "2", "--targets", "3", "2", "--dense-epochs", "1"]
    flags += ["--runs", str(tmp_path), "--out", str(out)]
    assert cifar_table.main(flags) == 0
    assert [name for name, _ in asked] == ["vgg16", "alexnet"]
    assert [config.pruning.target for _, config in asked] == [3, 2]
    for _, config in asked:
        assert config.data.dataset == "cifar10"
        assert config.pruning.recipe == "rewind"
        assert config.training.dense_epochs == 1
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["network"] for r in rows] == ["vgg16", "alexnet"]
    assert [r["pruned_mean"] for r in rows] == ["90.500"] * 2
    assert [r["holds"] for r in rows] == ["yes"] * 2
    assert "90.500 +- 0.707%" in capsys.readouterr().out


def test_what_a_network_refuses_ends_it(tmp_path, capsys):
    """There is no CIFAR-10 in an empty folder; the command says how to prepare it."""
    out = tmp_path / "out.csv"
    flags = ["--data-dir", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert cifar_table.main([*flags, "--out", str(out)]) == 1
    assert "CIFAR-10 is not in" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("flags", [["--seeds", "1"], ["--networks"]])
def test_one_seed_has_no_deviation(flags, tmp_path, capsys):
    assert cifar_table.main([*flags, "--out", str(tmp_path / "out.csv")]) == 2
    assert "expected 2 seeds or more" in capsys.readouterr().err
