"""One seed per candidate, all from the request's seed, so that a run can be replayed candidate by candidate."""

from __future__ import annotations

import hashlib

SEED_BITS = 63  # vLLM takes signed 64-bit seeds


def candidate_seed(request_seed: int, candidate: int) -> int:
    """Return the seed of the candidate with that index (from 0), in 0 to 2**63 - 1.

    Candidate 0 has the request's own seed where it lies in that range: what is drawn first is what the client would
    have been given without us. The others are hashes, so neighbouring request seeds share no candidate.
    """
    if candidate == 0 and 0 <= request_seed < 1 << SEED_BITS:
        return request_seed
    return _hashed(f"{request_seed}/{candidate}")


def exploration_seed(request_seed: int) -> int:
    """Return the request seed of the full best-of-N that is run beside a request to measure it.

    A hash too, so that its candidates can be drawn again, and are none of the request's own: a full best-of-N that
    shared candidates with the run it is compared with would understate the regret.
    """
    return _hashed(f"{request_seed}/exploration")


def _hashed(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - SEED_BITS)
