import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from dpeq.privacy.randomness import Randomness, Stream


def test_key_stream_is_chacha20_of_rfc_8439():
    """The key stream of RFC 8439, section 2.4.2 begins at block 1; block 0 of the same key and nonce precedes it."""
    key, nonce = bytes(range(32)), bytes.fromhex("000000000000004a00000000")
    expected = bytes.fromhex(
        "224f51f3401bd9e12fde276fb8631ded8c131f823d2c06e27e4fcaec9ef3cf788a3b0aa372600a92b57974cded2b9334794cba40c63e34cdea212c4cf07d41b7"
    )
    raw = Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), mode=None).encryptor().update(bytes(128))
    assert raw[64:] == expected
    assert Stream(key, nonce).words(16).tolist() == [int.from_bytes(raw[i : i + 8], "little") for i in range(0, 128, 8)]
    words = np.frombuffer(raw, dtype="<u8") >> np.uint64(12)
    assert torch.equal(Stream(key, nonce).uniform(16), torch.from_numpy((words.astype(float) + 0.5) * 2.0**-52))


def test_streams_are_distinct_by_key_use_and_step():
    random = Randomness.create(1)
    streams = [
        random.stream(use, step)
        for use in ("sampling", "views", "noise", "augment", "layers")
        for step in (1, 2, 2**33)
    ]
    streams.append(Randomness.create(2).stream("noise", 1))
    draws = torch.stack([s.uniform(20_000) for s in streams])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert float(correlation.abs().max()) < 5 / math.sqrt(20_000)
    assert torch.equal(random.stream("noise", 2).uniform(5), Randomness.create(1).stream("noise", 2).uniform(5))
    with pytest.raises(ValueError, match="count from 1"):
        random.stream("noise", -1)


def test_a_stream_goes_on_where_it_ended():
    whole = Randomness.create(1).stream("noise", 1).uniform(10)
    pieces = Randomness.create(1).stream("noise", 1)
    assert torch.equal(torch.cat([pieces.uniform(3), pieces.uniform(7)]), whole)
    pieces = Randomness.create(1).stream("noise", 1)
    assert pieces.words(0).shape == (0,)
    words = np.concatenate([pieces.words(3), pieces.words(1)])
    assert torch.equal(torch.from_numpy(((words >> np.uint64(12)).astype(float) + 0.5) * 2.0**-52), whole[:4])
    assert torch.equal(pieces.uniform(6), whole[4:])


def test_keys_from_the_operating_system_are_256_bits_and_never_shown():
    first, second = Randomness.create(None), Randomness.create(None)
    assert first.kind == "os"
    assert len(first._key) == 32
    assert not torch.equal(first.stream("noise", 1).uniform(4), second.stream("noise", 1).uniform(4))
    assert first._key.hex() not in repr(first)
    assert str(first._key) not in repr(first)
    assert Randomness.create(7).kind == "seeded"


def test_seeds_that_agree_in_their_low_bits_differ():
    """torch's own generator keeps 32 bits of a seed; this one keeps all of them."""
    a, b = (Randomness.create(s).stream("noise", 1).uniform(4) for s in (5, 5 + 2**32))
    assert not torch.equal(a, b)


def test_the_last_cell_is_not_rounded_to_one(monkeypatch):
    stream = Randomness.create(0).stream("noise", 1)
    monkeypatch.setattr(Stream, "words", lambda self, count: np.full(count, 2**64 - 1, dtype=np.uint64))
    assert float(stream.uniform(1)) < 1


def test_one_seed_gives_other_noise_to_other_sums_and_the_same_initial_weights():
    """The difference of two releases with one noise would show the difference of their sums."""
    one, two = Randomness.create(5).within("plan, lr 0.1"), Randomness.create(5).within("plan, lr 0.2")
    assert one.init_seed == two.init_seed == Randomness.create(5).init_seed != Randomness.create(6).init_seed
    for use in ("sampling", "views", "noise", "augment", "layers"):
        assert not torch.equal(one.stream(use, 1).uniform(4), two.stream(use, 1).uniform(4))
        assert torch.equal(
            one.stream(use, 1).uniform(4), Randomness.create(5).within("plan, lr 0.1").stream(use, 1).uniform(4)
        )
    secure = Randomness.create(None)
    assert secure.within("plan, lr 0.1") is secure
