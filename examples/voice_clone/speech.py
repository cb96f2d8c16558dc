"""The corpus: short sentences spoken by a few voices, made on first use and kept in `<output>/data`.

espeak-ng speaks when it is installed. Otherwise a small formant synthesiser does: one sound a letter, made of harmonics
of the voice's pitch, or of noise, under the letter's resonances. Both are deterministic, so the same seed trains the
same way on the same machine.

    data/corpus.json     format, source, and for each utterance: file, text, speaker, units
    data/0000.wav ...    mono, 16 bit
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .mel import FRAMES_PER_UNIT, SAMPLE_RATE, linear_mel, log_mel, normalise_peak

SPEAKERS = 4
UTTERANCES = 64
HELD_OUT = 8  # the last ones, for evaluation
UNITS = 64
SYMBOLS = "_ abcdefghijklmnopqrstuvwxyz,."  # the first one is padding
CORPUS_FORMAT = 1

Samples = NDArray[np.floating]


@dataclass(frozen=True)
class Recording:
    """One utterance of the corpus: a sound file, its text, who speaks, and its semantic tokens."""

    path: Path
    text: str
    speaker: int
    units: list[int]

    def samples(self) -> NDArray[np.int16]:
        return read_samples(self.path)

    def log_mel(self, samples: NDArray[np.int16] | None = None, quietest: float = 1e-4) -> Tensor:
        """What the networks learn from: of the recording, or of other samples in its stead."""
        return log_mel(normalise_peak(self.samples() if samples is None else samples, quietest))

    def unscaled_mel(self) -> Tensor:
        """Magnitudes of the 16-bit samples as they are."""
        return linear_mel(torch.from_numpy(self.samples().astype(np.float32)))


def open_corpus(folder: Path) -> list[Recording]:
    """The corpus in `folder`, made first if it is not there."""
    if not (folder / "corpus.json").exists():
        _make_corpus(folder)
    corpus = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    if corpus.get("format") != CORPUS_FORMAT:
        raise ValueError(f"{folder} holds another version's corpus: delete it and it is made anew")
    return [Recording(folder / u["file"], u["text"], u["speaker"], u["units"]) for u in corpus["utterances"]]


def read_samples(path: Path) -> NDArray[np.int16]:
    with wave.open(str(path), "rb") as sound:
        # A copy, because torch and the filters that work in place want writable memory.
        samples: NDArray[np.int16] = np.frombuffer(sound.readframes(sound.getnframes()), dtype=np.int16).copy()
    return samples


def _make_corpus(folder: Path) -> None:
    """Make the corpus beside its place and rename it there, so that nobody ever sees half of one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_corpus(unfinished)
        unfinished.rename(folder)
    except OSError:
        # Renaming onto a filled folder fails: another training that started at the same time was faster.
        if not (folder / "corpus.json").exists():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_corpus(folder: Path) -> None:
    rng = np.random.default_rng(0)
    espeak = shutil.which("espeak-ng")
    utterances = []
    for number in range(UTTERANCES):
        path, text, speaker = folder / f"{number:04d}.wav", _sentence(rng), number % SPEAKERS
        if espeak:
            _speak(espeak, text, speaker, path)
        else:
            _write_wave(path, _synthesise(text, speaker, rng))
        utterances.append({"file": path.name, "text": text, "speaker": speaker})
    for utterance, units in zip(utterances, _semantic_units(sorted(folder.glob("*.wav"))), strict=True):
        utterance["units"] = units
    corpus = {"format": CORPUS_FORMAT, "source": "espeak-ng" if espeak else "synthesised", "utterances": utterances}
    (folder / "corpus.json").write_text(json.dumps(corpus), encoding="utf-8")


# ---- what is said

_SUBJECTS = ("the old ferry", "a quiet robin", "my neighbour", "the night train", "one small cloud", "the baker")
_VERBS = ("waits for", "sings to", "follows", "remembers", "looks past", "writes about")
_OBJECTS = ("the harbour", "seven lanterns", "a paper map", "the first snow", "an empty road", "her brother")


def _sentence(rng: np.random.Generator) -> str:
    subject, verb, thing = (words[rng.integers(len(words))] for words in (_SUBJECTS, _VERBS, _OBJECTS))
    pause = "," if rng.random() < 0.3 else ""
    return f"{subject}{pause} {verb} {thing}."


def _speak(espeak: str, text: str, speaker: int, path: Path) -> None:
    voice = ("en+m1", "en+f2", "en+m3", "en+f4")[speaker]
    command = [espeak, "-v", voice, "-s", "190", "-w", str(path), text]
    spoken = subprocess.run(command, check=False, capture_output=True, text=True)
    if spoken.returncode != 0:
        raise OSError(f"espeak-ng failed: {' '.join(spoken.stderr.split())}")


# ---- a formant synthesiser

_VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
    "y": (290, 2100, 2900),
}
_VOICED = {letter: (250 + 15 * i, 1000 + 120 * i, 2200 + 60 * i) for i, letter in enumerate("mnlrwvzbdgj")}
_NOISY = {letter: (1500 + 450 * i, 3500 + 300 * i, 6000) for i, letter in enumerate("hkqpftcxs")}
_PAUSES = {" ": 0.03, ",": 0.15, ".": 0.2}


def _synthesise(text: str, speaker: int, rng: np.random.Generator) -> Samples:
    pitch, tract = ((105, 1.0), (210, 1.17), (130, 0.95), (180, 1.1))[speaker]
    sounds = []
    for place, letter in enumerate(text):
        # Pitch falls towards the end of a sentence and wavers a little from sound to sound.
        falling = pitch * (1.1 - 0.25 * place / len(text)) * rng.normal(1, 0.02)
        sounds.append(_sound(letter, falling, tract, rng))
    speech = np.concatenate(sounds)
    return speech + 0.002 * rng.standard_normal(len(speech))


def _sound(letter: str, pitch: float, tract: float, rng: np.random.Generator) -> Samples:
    if letter in _PAUSES:
        return np.zeros(int(_PAUSES[letter] * SAMPLE_RATE))
    duration = (0.085 if letter in _VOWELS else 0.055) * rng.uniform(0.85, 1.15)
    time = np.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
    formants = _VOWELS.get(letter) or _VOICED.get(letter) or _NOISY[letter]
    resonances = tract * np.array(formants)
    partials: Samples = pitch * np.arange(1, int(5000 / pitch))
    level = 0.25 if letter in _VOWELS else 0.12
    if letter in _NOISY:
        partials, level = rng.uniform(1000, 9000, size=40), 0.05
    strength = (1 / (1 + ((partials[:, None] - resonances) / 120) ** 2)).sum(axis=1)
    phases = rng.uniform(0, 2 * np.pi, size=len(partials))
    sound = strength @ np.sin(2 * np.pi * partials[:, None] * time + phases[:, None])
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.008)
    return np.asarray(level * fade * sound / np.sqrt((strength**2).sum()))


def _write_wave(path: Path, samples: Samples) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes())


# ---- semantic tokens


def _semantic_units(paths: list[Path]) -> list[list[int]]:
    """One token for every few spectrogram frames: the nearest of `UNITS` k-means centres."""
    pooled = []
    for path in paths:
        mel = log_mel(normalise_peak(read_samples(path))).numpy()
        whole = mel.shape[1] // FRAMES_PER_UNIT
        pooled.append(mel[:, : whole * FRAMES_PER_UNIT].reshape(mel.shape[0], whole, FRAMES_PER_UNIT).mean(axis=2).T)
    points = np.concatenate(pooled)
    centres = points[np.random.default_rng(0).choice(len(points), UNITS, replace=False)]
    for _ in range(10):
        nearest = _nearest(points, centres)
        for k in np.unique(nearest):
            centres[k] = points[nearest == k].mean(axis=0)
    return [_nearest(utterance, centres).tolist() for utterance in pooled]


def _nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    distances = (centres**2).sum(axis=1) - 2 * points @ centres.T
    return np.asarray(distances.argmin(axis=1))
