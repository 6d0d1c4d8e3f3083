import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tprnet_jax import benchmark
from tprnet_jax import config as configuration
from tprnet_jax.data import scene
from tprnet_jax.data.images import write_png
from tprnet_jax.method import step, topology
from tprnet_jax.method.cascade import TOPOLOGIES
from tprnet_jax.method.state import Trainer, initial_state
from tprnet_jax.peer import ours
from tprnet_jax.peer import process as peer
from tprnet_jax.report import tables
from tprnet_jax.report.tradeoff import Point
from tprnet_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def config(trained):
    """Of tiny networks on phantoms."""
    config = trained[0].copy_and_resolve_references()
    config.benchmark.batches, config.benchmark.sides = (2, 1), (32,)
    config.benchmark.repeats, config.benchmark.peer = 1, True
    return config


_machine = functools.cache(benchmark._machine)  # It is measured once.


@pytest.fixture(scope="module", params=["host", "device"])
def result(request, config, tmp_path_factory):
    config = config.copy_and_resolve_references()
    config.topology = request.param
    workdir = tmp_path_factory.mktemp("benchmark") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "Peer", lambda cascade, compiled: _Peer(lambda: 1.0))
        patch.setattr(benchmark, "_machine", _machine)
        found = benchmark.run(config, workdir)
    assert json.loads((workdir / "benchmark.json").read_text()) == found
    return found


class _Peer:
    def __init__(self, seconds):
        self.of_a_task = seconds

    def seconds(self, task, images, masks):
        assert images.shape == masks.shape
        return self.of_a_task()


def test_what_is_written(result):
    assert result["images"] == "phantom, validation"
    assert result["copy_bytes_per_second"] > 0
    common = ["global", "local", "transfer", "centreline", "sampling", "focal", "fusion"]
    for task, more in (("inference", []), ("training", ["backward", "update"])):
        part = result[task]
        assert list(part["stages"]) == common + more
        assert [row["batch"] for row in part["batches"]] == [1, 2]
        assert [row["side"] for row in part["sides"]] == [32]
        assert part["batch"] == 2
        assert part["images_per_second"] == part["batches"][1]["images_per_second"]
        assert all(row["images_per_second"] > 0 for row in part["batches"] + part["sides"])
        assert all(seconds >= 0 for seconds in part["stages"].values())
        share = part["flops_per_second"] / result["peak_flops"]
        assert part["share_of_peak"] == pytest.approx(share)
        assert share > 0


def test_the_ratios_are_of_medians(monkeypatch):
    """Two images in 0.5 s, the median of three after a warm-up; PyTorch needs 2 s, compiled 1 s."""
    order, taken = [], {"ours": [0.5, 9.0, 0.4, 99.0], "eager": [2.0] * 4, "compiled": [1.0] * 4}

    def seconds(kind):
        order.append(kind)
        return taken[kind].pop()  # The warm-up is the last one.

    monkeypatch.setattr(benchmark, "_seconds", lambda call: seconds("ours"))
    kinds = ("ours", "eager", "compiled")
    peers = {kind: _Peer(functools.partial(seconds, kind)) for kind in kinds[1:]}
    subject = ours.Subject(None, None, None, repeats=3)
    batch = ours.Batch(np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 1)))
    found = benchmark._beside(subject, "inference", None, peers, batch)
    assert found == {
        "peer": {"eager": 1.0, "compiled": 2.0},
        "ratio_to_peer": 4.0,
        "ratio_to_compiled_peer": 2.0,
    }
    assert order == [*kinds] * 4  # In turn, once to warm up.


def test_networks_never_published_are_timed_beside_the_full_size(config, monkeypatch):
    monkeypatch.setattr(peer, "Peer", lambda cascade, compiled: cascade)
    plain = benchmark._peers(config)
    tiny = configuration.cascade(config)
    assert plain == {"eager": tiny, "compiled": tiny}
    guided = config.copy_and_resolve_references()
    guided.model.guided = True
    paper = configuration.cascade(configuration.default())
    made = []
    monkeypatch.setattr(benchmark, "FullSize", lambda config: made.append(config))
    assert benchmark._peers(guided) == {"full size": None, "eager": paper, "compiled": paper}
    assert made == [guided]


def test_the_full_size_is_the_papers(config, monkeypatch):
    made = []
    monkeypatch.setattr(benchmark, "_subject", lambda config: made.append(config))
    guided = config.copy_and_resolve_references()
    guided.model.guided = True
    benchmark.FullSize(guided)
    assert made[0].model == configuration.default().model
    assert made[0].benchmark == guided.benchmark


def test_accuracy_against_time_of_an_evaluated_run(config, tmp_path, monkeypatch):
    """Twice the speed of eager PyTorch, whose Dice is the paper's."""
    drawn = []
    monkeypatch.setattr(benchmark.tradeoff, "draw", lambda points: drawn.append(points) or b"PNG")
    timed = {"peer": {"eager": 0.5, "compiled": 0.8}, "ratio_to_peer": 2.0}
    real = config.copy_and_resolve_references()
    real.data.name = "arcade"
    run = tmp_path / "run"
    benchmark._draw_tradeoff(real, run, timed)
    evaluation = run / "eval" / "validation"
    evaluation.mkdir(parents=True)
    (evaluation / "metrics.json").write_text(json.dumps({"final": {"dice": 0.8125}}))
    benchmark._draw_tradeoff(config, run, timed)  # Phantoms are not what the paper reports.
    assert not drawn
    benchmark._draw_tradeoff(real, run, timed)
    assert (run / "tradeoff.png").read_bytes() == b"PNG"
    assert drawn == [
        [
            Point("run", 1.0, 0.8125),
            Point("PyTorch, eager", 0.5, 0.8370, quoted=True),
            Point("PyTorch, compiled", 0.8, 0.8370, quoted=True),
        ]
    ]


def test_the_patches_are_those_of_the_true_masks(config, result):
    batch, _ = benchmark._load(config, 2)
    counts = [len(topology.patch_centres(vessel, 64, 64)) for vessel in batch.vessel]
    assert result["inference"]["patches_per_image"] == np.mean(counts)


@pytest.fixture(scope="module")
def subject(plain_trainer):
    state = initial_state(plain_trainer, 0)
    return ours.Subject(plain_trainer.cascade, state, lambda batch: plain_trainer, repeats=1)


@pytest.fixture(scope="module")
def plain_trainer(tiny):
    return Trainer(tiny, optax.identity(), lambda step: 0.0, clip_norm=1e9)


@pytest.fixture(scope="module")
def line(tiny_images):
    """A vessel in a corner of the first image, and none in the second."""
    masks = np.zeros((2, 25, 22, 1), np.uint8)
    masks[0, 12, 4:18] = 255
    return ours.Batch(tiny_images, masks)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_patches_lie_on_the_true_vessels(subject, line, topology):
    cascade = dataclasses.replace(subject.cascade, topology=topology)
    (masks,) = ours.segment(subject._replace(cascade=cascade), [line])
    np.testing.assert_array_equal(masks["final"][1], masks["global_local"][1])
    changed = masks["final"][0] != masks["global_local"][0]
    assert changed[8:17].any()
    assert not changed[:8].any()  # A patch of 8 pixels reaches no farther from row 12.
    assert not changed[17:].any()


def test_training_takes_the_patches_of_the_true_vessels(subject, plain_trainer, line, monkeypatch):
    counts, sample = [], step.patches_for_devices

    def count(*arguments, **fields):
        patches, number = sample(*arguments, **fields)
        counts.append(number)
        return patches, number

    monkeypatch.setattr(step, "patches_for_devices", count)
    ours.train(subject, [line])
    assert counts == [1]  # Of 14 pixels, 8 to a patch; the networks find more.
    step.train_step(plain_trainer, subject.state, *line, with_focal=True)
    assert counts[1] > 1


def test_operations_are_those_of_the_published_networks():
    """GFLOP of GlobalNet, LocalNet and FocalNet: 117.6, 89.1 and 1.10 a patch."""
    cascade = configuration.cascade(configuration.default())
    assert benchmark.forward_flops(cascade, (512, 512), 0) / 1e9 == pytest.approx(206.7, abs=0.1)
    patches = benchmark.forward_flops(cascade, (512, 512), 10)
    assert patches - benchmark.forward_flops(cascade, (512, 512), 0) == pytest.approx(
        10 * 1.10e9, rel=0.01
    )


def test_every_pass_through_a_loop_counts():
    """Products of 8 x 8, 2 * 8**3 operations each: 3 x 5 in two scans, and 3 additions to each."""
    square = jnp.ones((8, 8))

    def inner(x, _):
        return x @ square, None

    @jax.checkpoint
    def outer(x, _):
        return jax.lax.scan(inner, x, length=5)[0] + 1, None

    program = jax.make_jaxpr(lambda x: jax.lax.scan(outer, x, length=3)[0])(square)
    assert benchmark._flops(program) == pytest.approx(15 * 2 * 8**3 + 3 * 8**2, rel=0.01)


def test_the_table_has_every_figure(result):
    lines = tables.of_speed(result).splitlines()
    assert lines[0].endswith("float32; phantom, validation")
    assert sum(line.startswith(("batch 1 ", "batch 2 ", "side 32 ")) for line in lines) == 6
    assert f"ours is {result['training']['ratio_to_peer']:.2f} and " in lines[-1]


def test_without_data_there_are_phantoms(config):
    absent = config.copy_and_resolve_references()
    absent.data.name, absent.data.source = "arcade", ""
    batch, source = benchmark._load(absent, 1)
    assert source == "phantoms of 512 pixels"
    assert batch.images.shape == batch.masks.shape == (1, 512, 512, 1)
    assert set(np.unique(batch.masks)) == {0, 255}
    assert batch.vessel.any()


def test_images_of_several_sizes_cannot_be_timed_together(config, tmp_path):
    for side in (32, 48):
        for folder, array in zip(("images", "masks"), scene.draw(0, 0, side), strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_png(tmp_path / folder / f"{side}.png", array)
    (tmp_path / "splits.json").write_text('{"validation": ["32", "48"]}')
    own = config.copy_and_resolve_references()
    own.data.name, own.data.source = "folder", str(tmp_path)
    own.data.folder.splits = str(tmp_path / "splits.json")
    assert benchmark._load(own, 1)[0].images.shape == (1, 32, 32, 1)
    with pytest.raises(UserError, match=r"first 2 .* \(32, 32\) and \(48, 48\); set config\.bench"):
        benchmark._load(own, 2)


def test_a_clock_gives_each_stage_its_time(monkeypatch):
    times = iter([10.0, 11.0, 13.0, 16.0])
    monkeypatch.setattr(ours.time, "perf_counter", lambda: next(times))
    clock = ours.Clock()
    assert [clock.watch(stage, stage) for stage in "aba"] == ["a", "b", "a"]
    assert clock.seconds == {"a": 4.0, "b": 2.0}


@pytest.mark.parametrize("batches", [(), (0, 2), ("a",)])
def test_batches_that_cannot_be_timed(config, tmp_path, batches):
    wrong = config.copy_and_resolve_references()
    wrong.benchmark.batches = batches
    with pytest.raises(UserError, match=r"config\.benchmark\.batches is \("):
        benchmark.run(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_peer_needs_all_networks(trained):
    config = trained[0].copy_and_resolve_references()
    config.model.branches = ("global",)
    with pytest.raises(UserError, match="needs all three"):
        peer.Peer(configuration.cascade(config), compiled=False)


def test_figures_are_of_this_device(result):
    assert jax.devices()[0].device_kind in result["device"]
