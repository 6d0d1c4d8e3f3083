"""Table II of the paper: TPRNet without some of its branches, trained and evaluated alike."""

import itertools
import json
import statistics
from pathlib import Path

from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax import train
from tprnet_jax.fields import FIELDS
from tprnet_jax.method.cascade import BRANCHES
from tprnet_jax.report.tables import COLUMNS, grid, number
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_whole

ABLATIONS = {"_".join(BRANCHES[:count]): BRANCHES[:count] for count in (1, 2, 3)}


def run(config: ConfigDict, workdir: Path) -> dict:
    """Trains every ablation with every seed of `config.ablate.seeds`, in place of `config.seed`.

    Each run has its own workdir, `workdir/<ablation>/seed_<seed>`. One that was stopped goes on,
    and one that is complete only reports. As soon as a seed has all its ablations, prints the table
    over the seeds so far and writes `workdir/ablation.json`.

    Returns:
        What `ablation.json` has.

    Raises:
        UserError: The configuration, the data or the checkpoints cannot be used.
    """
    plan = _plan(config)
    results = {name: {} for name in ABLATIONS}
    number, total = itertools.count(1), len(plan) * len(ABLATIONS)
    for seed, configs in plan.items():
        for name, ablated in configs.items():
            print(f"\n--- {name}, seed {seed} ({next(number)} of {total}) ---", flush=True)
            results[name][seed] = train.run(ablated, workdir / name / f"seed_{seed}")
        report = summary(results)
        write_whole(workdir / "ablation.json", json.dumps(report, indent=2) + "\n")
        print(table(report), flush=True)
    return report


def _plan(config: ConfigDict) -> dict[int, dict[str, ConfigDict]]:
    """The configuration of each run, by seed and ablation, checked before any is trained."""
    _check(config)
    return {
        seed: {name: _ablated(config, branches, seed) for name, branches in ABLATIONS.items()}
        for seed in config.ablate.seeds
    }


def _check(config: ConfigDict) -> None:
    branches, seeds = tuple(config.model.branches), tuple(config.ablate.seeds)
    if branches != BRANCHES:
        raise UserError(
            f"config.model.branches is {branches}, but --mode=ablate leaves out branches by "
            f"itself; let it be {BRANCHES}"
        )
    _, low, high = FIELDS["seed"]
    usable = all(type(seed) is int and low <= seed <= high for seed in seeds)
    if not seeds or not usable or len(set(seeds)) < len(seeds):
        raise UserError(
            f"config.ablate.seeds is {seeds}; give one or more different whole numbers from {low} "
            f"to {high}, such as --config.ablate.seeds=0,1,2"
        )


def _ablated(config: ConfigDict, branches: tuple[str, ...], seed: int) -> ConfigDict:
    ablated = config.copy_and_resolve_references()
    ablated.model.branches, ablated.seed = branches, seed
    ablated.train.remat = tuple(b for b in config.train.remat if b in branches)
    configuration.check(ablated)
    return ablated


def summary(results: dict[str, dict[int, dict]]) -> dict:
    """The final output's metrics of each run, and their mean and deviation over seeds.

    Args:
        results: What `evaluate.run` returned, by ablation and seed.

    Returns:
        images, split, source and checkpoint, the same for all runs; seeds; and for each ablation
        its runs, mean and, if there are several seeds, the sample standard deviation sd.
    """
    one_ablation = next(iter(results.values()))
    one_result = next(iter(one_ablation.values()))
    return {
        **{key: one_result[key] for key in ("images", "split", "source", "checkpoint")},
        "seeds": list(one_ablation),
        "ablations": {name: _over_seeds(by_seed) for name, by_seed in results.items()},
    }


def _over_seeds(by_seed: dict[int, dict]) -> dict:
    runs = [{"seed": seed, **result["final"]} for seed, result in by_seed.items()]
    values = {key: [run[key] for run in runs] for key in COLUMNS}
    report = {"runs": runs, "mean": {key: statistics.fmean(v) for key, v in values.items()}}
    if len(runs) > 1:
        report["sd"] = {key: statistics.stdev(v) for key, v in values.items()}
    return report


def table(report: dict) -> str:
    """The paper's Table II, a row for each ablation, from what `summary` returns."""
    several = len(report["seeds"]) > 1
    rows = [("", *COLUMNS.values())]
    for name, branches in ABLATIONS.items():
        cells = (_cell(report["ablations"][name], key) for key in COLUMNS)
        rows.append((" + ".join(branches).title(), *cells))
    lines = ["", *grid(rows, first=22, rest=17 if several else 11)]
    lines.append(
        f"Final output on the {report['images']} images of {report['split']}, "
        f"{report['checkpoint']} checkpoint; ASD in pixels."
    )
    seeds = ", ".join(map(str, report["seeds"]))
    if several:
        lines.append(f"Mean ± sample standard deviation over the seeds {seeds}.")
    else:
        lines.append(f"Seed {seeds} alone: one seed has no error bar.")
    return "\n".join(lines)


def _cell(ablation: dict, key: str) -> str:
    return " ± ".join(
        number(key, ablation[part][key]) for part in ("mean", "sd") if part in ablation
    )
