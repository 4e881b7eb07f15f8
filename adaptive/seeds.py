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
    digest = hashlib.blake2b(f"{request_seed}/{candidate}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - SEED_BITS)
