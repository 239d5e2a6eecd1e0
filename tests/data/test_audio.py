import numpy as np
import pytest
import scipy.signal
import torch

from kingpost.data.audio import FLOOR, AudioNpz, mel_filters, spectrogram
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose

RATE = 8000


def tone(hertz, samples, strength=1.0):
    return (strength * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


@pytest.fixture
def paths(tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("train", 20), ("test", 6)):
        sounds = [tone(400 * (1 + n % 2), int(draw.integers(300, 900)), 0.3) for n in range(count)]
        sounds = [sound + draw.normal(0, 0.01, len(sound)) for sound in sounds]
        offsets = np.cumsum([0, *map(len, sounds)])
        audio = (np.concatenate(sounds) * 32767).astype(np.int16)
        np.savez(tmp_path / name, audio=audio, offsets=offsets, label=np.arange(count) % 2, sample_rate=RATE)
    return {name: str(tmp_path / f"{name}.npz") for name in ("train", "test")}


def test_the_spectrogram_is_that_of_scipy():
    sound = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    ours = spectrogram(torch.from_numpy(sound), window=256, hop=100, filters=None)
    _, _, spectrum = scipy.signal.stft(
        sound.astype(np.float64), window="hann", nperseg=256, noverlap=156, boundary=None, padded=False
    )
    wanted = np.log(np.maximum(4 * np.abs(spectrum.T) ** 2, FLOOR))  # scipy's scale gives a full sine 1/2
    assert ours.shape == wanted.shape == (8, 129)
    np.testing.assert_allclose(ours, wanted, atol=1e-3)  # float32 against float64; logarithms of small powers


def test_a_full_sine_has_power_one_at_its_frequency():
    spectrum = spectrogram(torch.from_numpy(tone(1000, 512)), 256, 256, None)
    assert spectrum.argmax(1).tolist() == [32, 32]  # 1000 Hz / (8000 Hz / 256)
    assert spectrum.max().item() == pytest.approx(0.0, abs=1e-4)  # float32


def test_mel_filters_are_as_a_slow_loop_makes_them():
    filters = mel_filters(10, 129, RATE).double().numpy()
    mel = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 12)
    edges = 700 * (10 ** (mel / 2595) - 1)
    for band in range(10):
        low, middle, high = edges[band : band + 3]
        for k in range(129):
            f = k * RATE / 256
            wanted = (f - low) / (middle - low) if low <= f <= middle else (high - f) / (high - middle)
            assert filters[band, k] == pytest.approx(max(0.0, wanted if low <= f <= high else 0.0), abs=1e-6)  # float32


def test_recordings_are_scaled_by_the_training_part_and_filled_up_with_zero(paths):
    source = AudioNpz(**paths, bands=12, validation_fraction=0.2)
    opened = source.open()
    assert {part: len(split) for part, split in opened.splits.items()} == {"train": 16, "validation": 4, "test": 6}
    raw = np.load(paths["train"])
    sounds = [raw["audio"][a:b] / 32768 for a, b in zip(raw["offsets"], raw["offsets"][1:], strict=False)]
    filters = mel_filters(12, 129, RATE)
    own = [spectrogram(torch.from_numpy(s.astype(np.float32)), 256, 128, filters) for s in sounds]
    train = [own[i] for i in opened.indices["train"]]
    everything = torch.cat(train).double()
    mean, std = everything.mean(0), everything.std(0, correction=0)
    length = max(map(len, train))
    assert opened.facts.inputs == (((length, 12), torch.float32),) and opened.facts.form == "series"
    for row, index in enumerate(opened.indices["validation"].tolist()):
        wanted = ((own[index].double() - mean) / std)[:length]
        got = opened.splits["validation"].inputs[0][row]
        torch.testing.assert_close(got[: len(wanted)].double(), wanted, atol=1e-4, rtol=0)  # float32
        assert got[len(wanted) :].eq(0).all()
        assert opened.splits["validation"].targets[row] == index % 2
    assert choose("data", {"name": "audio-npz", **source.to_value()}) == source


def test_nothing_is_learned_from_the_test_part(paths):
    before = AudioNpz(**paths, bands=12).open()
    raw = dict(np.load(paths["test"]))
    np.savez(paths["test"], **(raw | {"audio": raw["audio"] // 7}))
    after = AudioNpz(**paths, bands=12).open()
    assert after.fitted["inputs"] == before.fitted["inputs"] and after.fingerprint != before.fingerprint
    assert after.splits["train"].inputs[0].equal(before.splits["train"].inputs[0])
    assert not after.splits["test"].inputs[0].equal(before.splits["test"].inputs[0])


def test_new_recordings(paths, tmp_path):
    source = AudioNpz(**paths, bands=12, frames=3)
    opened = source.open()
    assert opened.fitted["cut"]["test"] > 0 and opened.facts.inputs[0][0] == (3, 12)
    same = source.read(tmp_path / "test.npz", opened.fitted, opened.facts)
    assert same.labelled and same.inputs[0].equal(opened.splits["test"].inputs[0])
    raw = dict(np.load(paths["test"]))
    np.savez(tmp_path / "new.npz", audio=raw["audio"], offsets=raw["offsets"])
    new = source.read(tmp_path / "new.npz", opened.fitted, opened.facts)
    assert not new.labelled and new.inputs[0].equal(same.inputs[0])


def test_files_that_do_not_fit_are_refused(paths, tmp_path):
    raw = dict(np.load(paths["train"]))
    with pytest.raises(DataError, match=r"8000 samples a second, data.sample_rate says 16000"):
        AudioNpz(**paths, bands=None, sample_rate=16000).open()
    np.savez(tmp_path / "bad.npz", **(raw | {"offsets": raw["offsets"][::-1]}))
    with pytest.raises(DataError, match=r"'offsets' must rise from 0 to"):
        AudioNpz(train=str(tmp_path / "bad.npz")).open()
    np.savez(tmp_path / "bad.npz", **(raw | {"label": raw["label"][1:]}))
    with pytest.raises(DataError, match=r"'label' has shape \(19,\)"):
        AudioNpz(train=str(tmp_path / "bad.npz")).open()
    with pytest.raises(DataError, match=r"no array 'sound'; it holds: audio, label, offsets, sample_rate"):
        AudioNpz(**paths, audio="sound").open()
    with pytest.raises(RecipeError, match=r"bands: \d+ of 100 bands are narrower than the spacing"):
        AudioNpz(**paths, bands=100)
