import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tprnet_jax import config
from tprnet_jax.method import augment, cascade, inference, optimiser, step, windows
from tprnet_jax.method.cascade import Cascade
from tprnet_jax.method.state import State, Trainer, initial_state
from tprnet_jax.models.parts import mean_pool, pad_to_multiple
from tprnet_jax.models.supervision import head, supervise
from tprnet_jax.models.unet import UNet


def _trainer(tiny, clip_norm, learning_rate, **fields):
    optim = config.default().optim
    optim.update(fields)
    return Trainer(tiny, optimiser.direction(optim), lambda step: learning_rate, clip_norm)


def train_step(trainer, state, *rest, **fields):
    """From a copy, because a step takes the memory of its state."""
    return step.train_step(trainer, jax.tree.map(jnp.copy, state), *rest, **fields)


@pytest.fixture(scope="module")
def plain(tiny):
    """Takes the gradient itself off the parameters."""
    return _trainer(tiny, 1e9, 1.0, momentum=0.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def clipped(tiny):
    return _trainer(tiny, 0.05, 0.01, momentum=0.9, weight_decay=0.1)


@pytest.fixture(scope="module")
def masks(tiny_images):
    return np.where(tiny_images > 150, 255, 0).astype(np.uint8)


def _state(trainer, params):
    params = {name: params[name] for name in trainer.cascade.networks}
    optim = {name: trainer.direction.init(branch) for name, branch in params.items()}
    return State(jnp.int32(0), params, optim, skipped=jnp.int32(0))


def _reluctant(params, bias):
    """The same parameters, except that GlobalNet and LocalNet prefer the background."""
    heads = {
        name: {**params[name]["head"], "bias": np.array([bias, -bias], np.float32)}
        for name in ("global", "local")
    }
    return params | {name: {**params[name], "head": head} for name, head in heads.items()}


def _norm(tree):
    return np.sqrt(sum((np.asarray(leaf, float) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def _assert_trees_close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


# ---- The gradient against one differentiable function --------------------------------------------


def _selection(origin, side, size):
    """`(places, side, size)`: 1 where position `size` of the image is number `side` of a place."""
    positions = np.asarray(origin)[:, None, None] + np.arange(side)[None, :, None]
    return (positions == np.arange(size)[None, None, :]).astype(np.float32)


@pytest.fixture(scope="module")
def places(tiny, tiny_params, tiny_images):
    """The coordinates, as constants: selection matrices of the windows and of the patches."""

    @jax.jit
    def forward(params, images):
        coarse = cascade.coarse_logits(tiny, params, images)
        return cascade.sampling_mask(tiny, coarse)

    vessel, corner = forward(tiny_params, cascade.to_unit(jnp.asarray(tiny_images)))
    owner, origin = cascade.sample_patches(tiny, np.asarray(vessel), np.asarray(corner), (25, 22))
    assert len(owner) > 2 * tiny.chunk
    assert len(owner) % tiny.chunk > 0
    found = {
        "owner": (owner[:, None] == np.arange(2)[None]).astype(np.float32),
        "window": (_selection(corner[:, 0], 16, 25), _selection(corner[:, 1], 16, 22)),
        "patch": (_selection(origin[:, 0], 8, 25), _selection(origin[:, 1], 8, 22)),
    }
    in_window = _put_windows(found, np.ones((2, 16, 16, 1))) > 0
    in_patch = _put_patches(found, np.ones((len(owner), 8, 8, 1))) > 0
    cases = np.bincount((2 * in_patch + in_window).ravel(), minlength=4)
    assert (cases > 0).all()
    return found


def _loss(logits, mask):
    """Cross-entropy + soft Dice from the difference of the logits."""
    difference = logits[..., 1:] - logits[..., :1]
    entropy = (jax.nn.softplus(difference) - mask * difference).mean()
    probability = jax.nn.sigmoid(difference)
    dice = (2 * (probability * mask).sum() + 1e-5) / (probability.sum() + mask.sum() + 1e-5)
    return entropy - dice


def _cut_windows(places, images):
    return jnp.einsum("bih,bjw,bhwc->bijc", *places["window"], images)


def _put_windows(places, values):
    return jnp.einsum("bih,bjw,bijc->bhwc", *places["window"], values)


def _cut_patches(places, images):
    return jnp.einsum("pb,pih,pjw,bhwc->pijc", places["owner"], *places["patch"], images)


def _put_patches(places, values):
    return jnp.einsum("pb,pih,pjw,pijc->bhwc", places["owner"], *places["patch"], values)


def _focal_terms(net, params, images, masks, places, m1, m2, in_window):
    """Terms of the final logits and of the patches; the topology is refined first."""
    m3 = net.apply({"params": params["focal"]}, _cut_patches(places, images))
    weight = jnp.broadcast_to(windows.patch_weight((8, 8))[None, :, :, None], m3[..., :1].shape)
    weights = _put_patches(places, weight)
    in_patch = weights > 0
    m4 = _put_patches(places, weight * m3) / jnp.where(in_patch, weights, 1)
    final = jnp.where(
        in_patch,
        jnp.where(in_window, m4 / 4 + m2 / 4 + m1 / 2, (m1 + m4) / 2),
        jnp.where(in_window, (m1 + m2) / 2, m1),
    )
    focal = jax.vmap(_loss)(m3, _cut_patches(places, masks)).mean()
    return {"final": _loss(final, masks), "focal": focal}


def _objective(params, tiny, images, masks, places):
    """The training objective of the branches in `params`, and its terms."""
    m1 = tiny.global_net.apply({"params": params["global"]}, images)
    terms = {"global": _loss(m1, masks)}
    if "local" in params:
        windowed = tiny.local_net.apply({"params": params["local"]}, _cut_windows(places, images))
        m2 = _put_windows(places, windowed)
        in_window = _put_windows(places, jnp.ones_like(windowed[..., :1])) > 0
        terms["local"] = _loss(windowed, _cut_windows(places, masks))
        terms["global_local"] = _loss(jnp.where(in_window, (m1 + m2) / 2, m1), masks)
    if "focal" in params:
        terms |= _focal_terms(tiny.focal_net, params, images, masks, places, m1, m2, in_window)
    return sum(terms.values()) / len(terms), terms


@pytest.fixture(scope="module")
def reference(tiny, tiny_params, tiny_images, masks, places):
    """Loss, terms and gradients with the first one, two or three branches."""
    images, masks = (cascade.to_unit(jnp.asarray(array)) for array in (tiny_images, masks))
    differentiate = jax.jit(jax.value_and_grad(_objective, has_aux=True), static_argnums=1)
    return {
        count: differentiate(
            {name: tiny_params[name] for name in cascade.BRANCHES[:count]},
            tiny,
            images,
            masks,
            places,
        )
        for count in (1, 2, 3)
    }


@pytest.mark.parametrize(
    ("without", "with_focal", "branches"),
    [((), True, 3), ((), False, 2), (("focal",), False, 2), (("local", "focal"), False, 1)],
    ids=["all", "FocalNet sits out", "global_local", "global"],
)
def test_a_step_follows_the_gradient_of_the_whole(
    plain, tiny_params, tiny_images, masks, reference, without, with_focal, branches
):
    ablation = dataclasses.replace(plain.cascade, **{f"{name}_net": None for name in without})
    trainer = plain._replace(cascade=ablation)
    state, scalars = train_step(
        trainer, _state(trainer, tiny_params), tiny_images, masks, with_focal
    )
    (loss, terms), gradient = reference[branches]
    assert len(terms) == {1: 1, 2: 3, 3: 5}[branches]
    assert {name for name in scalars if name.startswith("loss_")} == {f"loss_{t}" for t in terms}
    for name, term in terms.items():
        assert scalars[f"loss_{name}"] == pytest.approx(float(term), rel=1e-5)
    assert scalars["loss"] == pytest.approx(np.mean([float(t) for t in terms.values()]), rel=1e-5)
    assert scalars["loss"] == pytest.approx(float(loss), rel=1e-5)
    norm = _norm(gradient)
    assert scalars["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    taken = {
        name: jax.tree.map(lambda before, after: before - after, tiny_params[name], branch)
        for name, branch in state.params.items()
        if name in gradient
    }
    _assert_trees_close(taken, gradient, rtol=1e-4, atol=1e-6)
    assert state.step == 1


def _assert_same_step(found, expected):
    assert found[1]["patches"] == expected[1]["patches"] > 5
    assert found[1]["loss"] == pytest.approx(float(expected[1]["loss"]), rel=1e-6)
    _assert_trees_close(found[0].params, expected[0].params, rtol=1e-4, atol=1e-6)


def test_the_device_finds_the_patches_of_the_host(plain, tiny_params, tiny_images, masks):
    batch = _state(plain, tiny_params), tiny_images, masks, True
    placed = plain._replace(cascade=dataclasses.replace(plain.cascade, topology="device"))
    _assert_same_step(train_step(placed, *batch), train_step(plain, *batch))


def test_a_guided_step_follows_the_gradient_of_the_whole(plain, tiny_images, masks):
    """The whole in one function, its coordinates and guidance constants."""
    guided = dataclasses.replace(plain.cascade, guided=True, chunk=20)
    trainer, params = plain._replace(cascade=guided), cascade.init(guided, jax.random.key(0))
    unit, truth = (cascade.to_unit(jnp.asarray(array)) for array in (tiny_images, masks))
    coarse = jax.jit(cascade.coarse_logits, static_argnums=0)(guided, params, unit)
    places = cascade.sample_patches(guided, *cascade.sampling_mask(guided, coarse), (25, 22))
    (patches,) = cascade.chunks(40, *places, 2)
    taken = (patches.owner < 2)[:, None]

    def objective(params):
        coarse = cascade.coarse_logits(guided, params, unit)
        seen = cascade.focal_input(guided, unit, coarse)
        logits = cascade.focal_logits(guided, params, seen, patches)
        canvas = cascade.lay(guided, windows.empty_canvas(2, (25, 22), 2), logits, patches)
        stages = cascade.refine(guided, coarse, canvas)
        window = windows.crop(truth, coarse.origin, (16, 16))
        cut = windows.stack_patches(truth, patches, (8, 8))
        each = jax.vmap(_loss)(logits, cut)
        terms = [_loss(stage, truth) for stage in stages.values()]
        terms += [
            _loss(coarse.local_logits, window),
            (each[:, None] * taken).sum() / len(places[0]),
        ]
        return sum(terms) / 5

    loss, gradient = jax.jit(jax.value_and_grad(objective))(params)
    state, scalars = train_step(trainer, _state(trainer, params), tiny_images, masks, True)
    assert scalars["patches"] == len(places[0]) > 5
    assert scalars["loss"] == pytest.approx(float(loss), rel=1e-5)
    moved = jax.tree.map(lambda before, after: before - after, params, state.params)
    _assert_trees_close(moved, gradient, rtol=1e-3, atol=1e-5)


def test_the_dice_of_each_image_if_asked(plain, tiny_params, tiny_images, masks):
    trainer = plain._replace(image_dice=True)
    stages = inference.predict(plain.cascade, tiny_params, tiny_images)
    _, scalars = train_step(trainer, _state(trainer, tiny_params), tiny_images, masks, True)
    for stage, probability in stages.items():
        difference = np.log(probability / (1 - probability))[..., None]
        logits = np.concatenate([np.zeros_like(difference), difference], axis=-1)
        of_each = [_loss(logits[i : i + 1], masks[i : i + 1] / np.float32(255)) for i in range(2)]
        assert scalars[f"loss_{stage}"] == pytest.approx(np.mean(of_each), rel=1e-4)


class Coarser(nn.Module):
    """Logits of the pixels, and of their squares of 2 x 2 and 4 x 4."""

    classes: int = 2
    dtype: str = "float32"
    auxiliary: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, 8)
        logits = head(self, x)
        for stage in (1, 2):
            x = mean_pool(x)
            supervise(self, x, stage)
        return logits[:, :height, :width]


@pytest.fixture(scope="module")
def coarser_params():
    rng, shapes = np.random.default_rng(0), {"kernel": (1, 1, 1, 2), "bias": (2,)}
    return {
        name: {part: rng.normal(size=shape).astype(np.float32) for part, shape in shapes.items()}
        for name in ("head", "head_1", "head_2")
    }


def _with_coarser(trainer, **fields):
    nets = {"global_net": Coarser(), "local_net": None, "focal_net": None}
    return trainer._replace(cascade=dataclasses.replace(trainer.cascade, **nets, **fields))


@pytest.mark.parametrize(("with_dice", "image_dice"), [(False, False), (True, False), (True, True)])
def test_deep_supervision_has_the_loss_of_the_logits(
    plain, coarser_params, tiny_images, masks, with_dice, image_dice
):
    """Half of it is that of squares of 2 x 2; the coarsest output has none."""
    trainer = _with_coarser(plain)._replace(with_dice=with_dice, image_dice=image_dice)
    # To 32 x 24, as a network of four stages needs.
    padded = [
        np.pad(array / np.float32(255), ((0, 0), (0, 7), (0, 2), (0, 0)), mode="edge")
        for array in (tiny_images, masks)
    ]
    squares = padded[0].reshape(2, 16, 2, 12, 2, 1).mean((2, 4))
    labels = padded[1][:, 1::2, 1::2]

    def auxiliary(head):
        logits = squares * head["kernel"] + head["bias"].reshape(1, 1, 1, 2)
        difference = logits[..., 1:] - logits[..., :1]
        if not with_dice:
            return (jax.nn.softplus(difference) - labels * difference).mean() / 2
        if not image_dice:
            return _loss(logits, labels) / 2
        return sum(_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(2)) / 4

    expected, gradient = jax.jit(jax.value_and_grad(auxiliary))(coarser_params["head_1"])
    before = _state(trainer, {"global": coarser_params})
    after, scalars = train_step(trainer, before, tiny_images, masks, False)
    assert scalars["loss_auxiliary"] == pytest.approx(float(expected), rel=1e-5)
    assert scalars["loss"] == pytest.approx(scalars["loss_global"] + scalars["loss_auxiliary"])
    taken = jax.tree.map(np.subtract, coarser_params, jax.device_get(after.params["global"]))
    _assert_trees_close(taken["head_1"], gradient, rtol=1e-4, atol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(taken["head_2"]))


def test_a_standardised_image_is_augmented_as_the_network_sees_it(
    plain, coarser_params, tiny_images, masks
):
    """Half as bright, it is half as far from 0; standardised after that, it would be as before."""
    half = augment.Settings(p_brightness=1.0, brightness=(0.5, 0.5))
    samples = np.zeros(2, np.int32), np.arange(2, dtype=np.int32)
    mean, deviation = (f(tiny_images, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    seen = (0.5 * (tiny_images - mean) / deviation).astype(np.float32)
    logits = seen * coarser_params["head"]["kernel"] + coarser_params["head"]["bias"]
    expected = _loss(logits, masks / np.float32(255))
    trainer = _with_coarser(plain, standardise=True)._replace(augmentation=half)
    state = _state(trainer, {"global": coarser_params})
    _, scalars = train_step(trainer, state, tiny_images, masks, False, samples)
    assert scalars["loss_global"] == pytest.approx(float(expected), rel=1e-4)


# ---- The average ---------------------------------------------------------------------------------


def test_the_average_forgets_its_start_and_then_decays_as_set(
    clipped, tiny_params, tiny_images, masks
):
    """The decay is 1/10, 2/11, then what is set, 0.25."""
    trainer = clipped._replace(ema=0.25)
    state = _state(trainer, tiny_params)._replace(average=tiny_params)
    expected = tiny_params
    for decay in (1 / 10, 2 / 11, 1 / 4, 1 / 4):
        state, _ = train_step(trainer, state, tiny_images, masks, True)
        expected = jax.tree.map(
            lambda old, new, d=decay: d * np.float64(old) + (1 - d) * np.float64(new),
            expected,
            state.params,
        )
        _assert_trees_close(state.average, expected, rtol=1e-5, atol=1e-6)
    assert state.evaluated is state.average


def test_without_an_average_the_weights_themselves_are_evaluated(clipped):
    state = initial_state(clipped, 0)
    assert state.average is None
    assert state.evaluated is state.params
    averaged = initial_state(clipped._replace(ema=0.9), 0)
    jax.tree.map(np.testing.assert_array_equal, averaged.average, state.params)


def test_a_step_that_is_not_applied_leaves_the_average(clipped, tiny_params, tiny_images, masks):
    trainer = clipped._replace(ema=0.9)
    zeros = jax.tree.map(jnp.zeros_like, tiny_params)
    before = _state(trainer, tiny_params)._replace(average=zeros)
    images = tiny_images / np.float32(255)
    images[0, 0, 0] = np.nan
    after, _ = train_step(trainer, before, images, masks, True)
    jax.tree.map(np.testing.assert_array_equal, after.average, zeros)


# ---- The update ----------------------------------------------------------------------------------


def test_the_gradient_of_all_branches_is_clipped_together(
    clipped, tiny_params, tiny_images, masks, reference, places
):
    gradient = reference[3][1]
    norm = _norm(gradient)
    assert norm > 2 * clipped.clip_norm
    state, scalars = train_step(
        clipped, _state(clipped, tiny_params), tiny_images, masks, with_focal=True
    )
    assert scalars["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert scalars["learning_rate"] == pytest.approx(0.01)
    assert scalars["patches"] == len(places["owner"])

    def expected(p, g):
        """PyTorch's first step: the momentum buffer is the clipped gradient + decay."""
        d = g * (0.05 / (norm + 1e-6)) + 0.1 * p
        return p - 0.01 * (d + 0.9 * d)

    _assert_trees_close(
        state.params, jax.tree.map(expected, tiny_params, gradient), rtol=1e-5, atol=1e-6
    )


def test_focalnet_is_untouched_while_it_sits_out(clipped, tiny_params, tiny_images, masks):
    """Neither decay nor momentum moves it, nor is its optimiser's state changed."""
    before = _state(clipped, tiny_params)
    momentum = jax.tree.map(jnp.ones_like, before.optim["focal"])
    before = before._replace(optim={**before.optim, "focal": momentum})
    after, scalars = train_step(clipped, before, tiny_images, masks, with_focal=False)
    jax.tree.map(np.testing.assert_array_equal, after.params["focal"], tiny_params["focal"])
    jax.tree.map(np.testing.assert_array_equal, after.optim["focal"], momentum)
    assert scalars["patches"] == 0
    moved = after.params["global"]["head"]["kernel"] != tiny_params["global"]["head"]["kernel"]
    assert moved.all()


def test_a_step_on_an_empty_prediction(clipped, tiny_params, tiny_images, masks):
    params = _reluctant(tiny_params, 20)
    state, scalars = train_step(clipped, _state(clipped, params), tiny_images, masks, True)
    assert scalars["patches"] == scalars["loss_focal"] == 0
    assert scalars["loss_final"] == scalars["loss_global_local"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, scalars)))
    # Its gradient is zero: the decay alone moves FocalNet, by 0.01 * (1 + 0.9) * 0.1.
    decayed = jax.tree.map(lambda p: p * (1 - 0.0019), params["focal"])
    _assert_trees_close(state.params["focal"], decayed, rtol=1e-5)


@pytest.mark.parametrize("broken", ["image", "gradient"])
def test_a_step_without_finite_numbers_is_not_applied(
    clipped, tiny_params, tiny_images, masks, broken
):
    before = _state(clipped, tiny_params)
    before = before._replace(step=jnp.int32(5), skipped=jnp.int32(2))
    images, params = tiny_images / np.float32(255), tiny_params
    if broken == "image":
        images[1, 3, 4] = np.nan
    else:
        kernel = np.zeros_like(params["local"]["head"]["kernel"])
        kernel[..., 1] = 1e30
        head = {**params["local"]["head"], "kernel": kernel}
        params = params | {"local": {**params["local"], "head": head}}
        before = before._replace(params=params)
    after, scalars = train_step(clipped, before, images, masks, with_focal=True)
    assert not np.isfinite(scalars["loss"] * scalars["gradient_norm"])
    assert (after.step, after.skipped, scalars["skipped"]) == (6, 3, 3)
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    jax.tree.map(np.testing.assert_array_equal, after.optim, before.optim)


def test_an_applied_step_ends_the_count_of_skipped_ones(clipped, tiny_params, tiny_images, masks):
    before = _state(clipped, tiny_params)._replace(skipped=jnp.int32(2))
    after, scalars = train_step(clipped, before, tiny_images, masks, with_focal=True)
    assert (after.skipped, scalars["skipped"]) == (0, 0)


def test_training_starts_from_the_seeds_parameters(clipped):
    net = UNet((2,))
    small = Cascade(net, None, None, 16, 8, 4, 20, 4, "topology_first")
    state = initial_state(clipped._replace(cascade=small), seed=5)
    params = cascade.init(small, jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert state.step == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.optim))


# ---- Compilations --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compilations():
    """A list that grows by one with every compilation."""
    events = []

    def listen(event, duration, **details):
        if "backend_compile" in event:
            events.append((event, duration, details))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events


def test_a_new_number_of_patches_compiles_nothing(
    clipped, tiny_params, tiny_images, masks, compilations
):
    rng = np.random.default_rng(0)

    def work(reluctance, images, with_focal):
        state = _state(clipped, _reluctant(tiny_params, reluctance))
        state, scalars = train_step(clipped, state, images, masks, with_focal)
        inference.predict(clipped.cascade, state.params, images)
        return int(scalars["patches"])

    before = len(compilations)
    jax.jit(lambda x: x + 1)(jnp.ones(3))
    assert len(compilations) > before
    assert 0 < work(0.35, tiny_images, True) <= clipped.cascade.chunk
    work(0.35, tiny_images, False)
    before, counts = len(compilations), set()
    for reluctance in np.linspace(-0.6, 1.2, 25):
        images = rng.integers(0, 256, tiny_images.shape, np.uint8)
        counts.add(work(reluctance, images, True))
    work(0.35, tiny_images, False)
    assert len(counts) >= 8
    assert min(counts) == 0
    assert max(counts) > 2 * clipped.cascade.chunk
    assert len(compilations) == before


def test_all_seeds_share_their_programs_and_nothing_else(clipped, tiny_params, tiny_images, masks):
    places = np.arange(len(tiny_images), dtype=np.int32)
    always = augment.Settings(p_rotation=1.0)

    def of(seed):
        trainer = clipped._replace(seed=seed, augmentation=always)
        arguments = tiny_images, masks, places, places
        augmented = step._augment.lower(trainer, *arguments, np.int32(seed))
        coarse = step._coarse.lower(trainer, tiny_params, tiny_images, 0, np.int32(seed))
        images, _ = step.on_devices(trainer, tiny_images, masks, (places, places))
        return (augmented.as_text(), coarse.as_text()), np.asarray(images)

    (first, images), (second, others) = of(0), of(1)
    assert first == second
    assert (images != others).any(axis=(1, 2, 3)).all()
