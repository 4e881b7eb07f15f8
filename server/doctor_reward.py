"""The check of the upstream reward model: is it there, and does it give one number for a reply."""

from __future__ import annotations

from adaptive.selection import SelectionFailed
from server.checks import Check, ok, warning
from server.reward import RewardUpstream
from server.settings import Settings


async def check_reward(reward: RewardUpstream, settings: Settings) -> Check:
    """Return whether a tiny reply could be judged. No failure of the proxy: without rewards the scores decide."""
    name = "reward model"
    try:
        service = await reward.service()
    except SelectionFailed as failure:
        return warning(
            name,
            f"{settings.reward_upstream} cannot judge a reply: {failure}.",
            "Serve a reward model there (`vllm serve MODEL --runner pooling`), or correct reward_upstream, "
            "reward_upstream_api_key, reward_model or reward_route.",
        )
    return ok(
        name,
        f"{settings.reward_upstream} judges replies with {service.model} through {service.path}: "
        f"{service.example:.3f} for one tiny answer.",
    )
