import dataclasses

import jax
import pytest

from configs import baselines, quickstart, tprnet, tprnet_compact, tprnet_released
from tprnet_jax import config as configuration
from tprnet_jax.method.cascade import init
from tprnet_jax.models.networks import NETWORKS
from tprnet_jax.models.unet import UNet
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.train import make_trainer


def test_default_is_the_papers_model():
    cascade = configuration.cascade(configuration.default())
    assert [len(net.channels) for net in cascade.networks.values()] == [8, 7, 4]
    assert (cascade.window, cascade.patch, cascade.pixels_per_patch) == (448, 64, 64)
    assert cascade.refinement == "topology_first"


@pytest.mark.parametrize(
    ("argument", "branches", "augmented"),
    [
        ("", ("global", "local", "focal"), False),
        ("global", ("global",), False),
        ("global_local", ("global", "local"), False),
        ("augmented", ("global", "local", "focal"), True),
        ("augmented,global_local", ("global", "local"), True),
    ],
)
def test_arguments_of_tprnet(argument, branches, augmented):
    config = tprnet.get_config(argument)
    assert tuple(configuration.cascade(config).networks) == branches
    assert (config.augment.p_rotation > 0) is augmented


@pytest.mark.parametrize("argument", ["", "short", "gpu"])
def test_compact_fits_into_20_megabytes_of_bfloat16(argument):
    cascade = configuration.cascade(tprnet_compact.get_config(argument))
    shapes = jax.eval_shape(lambda: init(cascade, jax.random.key(0)))
    assert 2 * sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 20e6


def test_the_short_training_of_compact_has_no_hold_out():
    short, whole = tprnet_compact.get_config("short"), tprnet_compact.get_config()
    assert (short.data.holdout, whole.data.holdout) == (0, 100)
    assert (short.augment.p_rotation, whole.augment.p_rotation) == (0, 0.3)
    with pytest.raises(UserError, match="no argument 'long'; choose short, gpu or all"):
        tprnet_compact.get_config("long")


def test_the_training_on_all_images_goes_on_from_that_on_a_gpu():
    first, further = tprnet_compact.get_config("gpu"), tprnet_compact.get_config("all")
    assert (first.data.holdout, further.data.holdout) == (100, 0)
    assert further.train.start_from == "runs/tprnet_compact_gpu"
    assert (first.augment.ramp, further.augment.ramp) == (20, 0)
    assert first.augment.to_dict() | {"ramp": 0} == further.augment.to_dict()


def test_tprnet_trains_as_released():
    config = tprnet.get_config()
    assert config.optim.to_dict() == {
        "name": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.99,
        "weight_decay": 3e-5,
        "second_momentum": 0.999,
        "schedule": "poly",
        "power": 0.9,
        "warmup": 0.0,
        "clip_norm": 12.0,
    }
    assert (config.train.epochs, config.train.batch, config.train.focal_from_epoch) == (100, 1, 1)


def test_what_the_released_preset_changes():
    """The rows of the table of differences between the paper and the released code."""
    paper, released = tprnet.get_config(), tprnet_released.get_config()
    changed = {
        f"{part}.{field}": value
        for part in ("data", "model", "optim", "train", "eval")
        for field, value in released[part].items()
        if value != paper[part][field]
    }
    assert changed == {
        "model.window_column": "half_width",
        "model.centreline": "close_and_thin",
        "model.centreline_region": "image",
        "model.first_point": "random",
        "model.max_patches": 4096,
        "model.refinement": "canvas_mean",
        "train.refinement": "sequential",
        "train.patch_gradient": False,
    }
    assert released.train.focal_from_epoch == 1
    cascade, trainer = configuration.cascade(released), make_trainer(released, 1000)
    assert dataclasses.replace(trainer.cascade, refinement="canvas_mean") == cascade
    assert trainer.cascade.refinement == "sequential"
    assert not trainer.patch_gradient
    assert make_trainer(paper, 1000).cascade == configuration.cascade(paper)


def test_unknown_argument_is_named():
    with pytest.raises(UserError, match="no argument 'tiny'"):
        tprnet.get_config("global,tiny")


def test_the_device_has_not_the_released_rules():
    released = tprnet_released.get_config()
    released.topology = "device"
    with pytest.raises(
        UserError, match=r"'device', which has no model\.centreline='close_and_thin'"
    ):
        configuration.check(released)


def test_quickstart_needs_no_download():
    assert quickstart.get_config().data.name == "phantom"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("augment.p_gamma", 1.5),
        ("augment.scaling", (1.4, 0.7)),
        ("augment.elastic", (0.0, 3.0)),
        ("augment.rotation", (15,)),
        ("augment.rotation", (1, 2, 3)),
        ("augment.rotation", ("a", "b")),
        ("augment.rotation", ()),
        ("model.global_size", ("a", "b")),
        ("model.global_size", (512,)),
        ("model.branches", ("local",)),
        ("model.branches", ("global", "focal")),
        ("model.branches", ()),
        ("model.refinement", "none"),
        ("model.dtype", "float16"),
        ("model.global_fold", 3),
        ("model.local_fold", 0),
        ("model.focal_fold", 4),
        ("train.ema", 1.0),
        ("train.ema", -0.1),
        ("augment.ramp", -1.0),
        ("model.chunk", 0),
        ("model.patch", -1),
        ("model.focal_channels", (32, 0)),
        ("model.global_channels", ()),
        ("model.global_channels", (4.5, 8)),
        ("data.name", "mnist"),
        ("seed", -1),
        ("optim.name", "lion"),
        ("optim.schedule", "step"),
        ("optim.learning_rate", -1.0),
        ("optim.learning_rate", float("inf")),
        ("optim.warmup", float("nan")),
        ("eval.split", "val"),
        ("eval.split", "holdout"),
        ("data.holdout", -1),
        ("data.holdout_seed", -1),
        ("train.epochs", 0),
        ("train.focal_from_epoch", -1),
        ("eval.batch", 0),
        ("eval.checkpoint", "newest"),
    ],
)
def test_values_that_cannot_be_used_are_named(field, value):
    config = configuration.default()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"config.{field} is"):
        configuration.check(config)


def test_a_focalnet_that_would_never_train_is_named():
    config = configuration.default()
    config.train.epochs = 1
    with pytest.raises(UserError, match=r"config\.train\.focal_from_epoch is 1.*only 1 epochs"):
        configuration.check(config)
    config.model.branches = ("global", "local")
    configuration.check(config)


def test_a_source_for_phantoms_is_named():
    config = quickstart.get_config()
    config.data.source = "/arcade"
    with pytest.raises(UserError, match=r"config\.data\.source is '/arcade', but .* 'phantom'"):
        configuration.check(config)


def test_a_holdout_to_evaluate_needs_images():
    config = configuration.default()
    config.eval.split = "holdout"
    with pytest.raises(UserError, match=r"split is 'holdout', but config\.data\.holdout is 0; set"):
        configuration.check(config)
    config.data.holdout = 1
    configuration.check(config)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"unet"}))
def test_another_network_in_the_place_of_global_net(name):
    config = configuration.default()
    config.model.global_net = name
    configuration.check(config)
    nets = configuration.cascade(config).networks
    assert type(nets["global"]) is not UNet
    assert type(nets["local"]) is UNet
    # Its official channels, although the field's default has those of the U-Net.
    assert nets["global"].channels == NETWORKS[name]().channels
    config.model.global_channels = (8, 8, 8, 8)
    assert configuration.cascade(config).global_net.channels == (8, 8, 8, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_net": "unet", "global_auxiliary": True}, "unet has no auxiliary outputs, only"),
        (
            {"global_net": "resunet", "global_fold": 2},
            "config.model.global_fold is for GlobalNet's",
        ),
        ({"global_net": "vnet"}, "config.model.global_net is 'vnet'; choose one of unet, resunet"),
    ],
)
def test_what_a_network_has_not(fields, message):
    config = configuration.default()
    config.model.update(fields)
    with pytest.raises(UserError, match=message):
        configuration.check(config)


def test_a_compared_network_keeps_all_activations():
    config = configuration.default()
    config.model.global_net, config.train.remat = "nnunet", ("global",)
    with pytest.raises(UserError, match=r"config\.train\.remat is for GlobalNet's own network"):
        configuration.check(config)


@pytest.mark.parametrize("name", baselines.SMALL)
@pytest.mark.parametrize("words", ["", ",small", ",official", ",small,cascade"])
def test_baselines(name, words):
    config = baselines.get_config(name + words)
    configuration.check(config)
    cascade = configuration.cascade(config)
    branches = ("global", "local", "focal") if "cascade" in words else ("global",)
    assert tuple(cascade.networks) == branches
    official = NETWORKS[name]().channels
    assert cascade.global_net.channels == (baselines.SMALL[name] if "small" in words else official)
    shared = config.optim.to_dict() == tprnet.get_config().optim.to_dict()
    assert shared is (words == "")


def test_the_trainer_is_as_set():
    config = baselines.get_config("nnunet,official,cascade")
    config.train.update({"loss": "cross_entropy", "image_dice": True, "remat": ("local",)})
    config.train.ema, config.augment.ramp, config.optim.clip_norm = 0.5, 3.0, 7.0
    configuration.check(config)
    trainer = make_trainer(config, 10)
    assert (trainer.ema, trainer.clip_norm, trainer.augmentation.ramp) == (0.5, 7.0, 3.0)
    assert (trainer.with_dice, trainer.image_dice) == (False, True)
    cascade = trainer.cascade
    assert cascade.standardise
    assert cascade.global_net.auxiliary
    assert (cascade.local_net.remat, cascade.focal_net.remat) == (True, False)
    usual = make_trainer(tprnet.get_config(), 10)
    assert (usual.ema, usual.with_dice, usual.image_dice) == (0, True, False)
    assert not usual.cascade.standardise
    assert not usual.cascade.local_net.remat


def test_every_compared_network_has_a_configuration():
    assert set(baselines.SMALL) == set(baselines.OFFICIAL) == set(NETWORKS) - {"unet"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "has no network ''; give one of resunet, coanet"),
        ("unet", "has no network 'unet'"),
        ("coanet,large", "has no word 'large'; choose from small, official, auxiliary, cascade"),
        ("resunet,auxiliary", "resunet has no auxiliary outputs; leave out the word"),
    ],
)
def test_words_that_baselines_have_not(argument, message):
    with pytest.raises(UserError, match=message):
        baselines.get_config(argument)
