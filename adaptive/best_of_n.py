"""Adaptive best-of-N: the only loop. Sample, score, prune, decide; then pick. After arXiv 2410.02725; see README.md.

It acts and never judges: every decision is a value from a pure module beside it.

    1. draw     how many, how hot, how long           stopping.next_step, annealing, seeds
    2. settle   good enough? the only one left?       stopping.reached_threshold, committing.commit
    3. score    whoever is due, all in one call       pruning.reached, scoring
    4. listen   tokens, scores, losses, the deadline  workers
    5. prune    when a checkpoint's scores arrive     pruning.prune
    6. pick     the best of those that are left       selection

Candidates never wait: while they are judged they grow. It knows token ids, scores and time; no HTTP and no users.
"""

from __future__ import annotations

import asyncio
from bisect import bisect, insort
from collections.abc import Callable, Sequence

from adaptive.annealing import CONSTANT
from adaptive.candidate import Candidate, Fate
from adaptive.clock import Clock
from adaptive.committing import Commit, CommitReason, best_so_far, commit
from adaptive.engine import Engine, EngineBusy, GeneratedTokens, Sampling
from adaptive.events import Committed, Delta, Listener, unheard
from adaptive.limits import Slots, Unlimited
from adaptive.policy import AtDeadline, Mode, Policy, Streaming
from adaptive.pruning import Standing, kept, prune, reached
from adaptive.run import Outcome, Request
from adaptive.scoring import Score, Scorer, ScoringFailed
from adaptive.seeds import candidate_seed
from adaptive.selection import HighestScore, Ranking, SelectionFailed, Selector, by_score
from adaptive.state import RunState
from adaptive.stopping import Draw, Stop, StopReason, next_step, reached_threshold
from adaptive.trace import Degraded, Drew, Picked, Pruned, SettledOn, Trace
from adaptive.workers import Asked, DeadlinePassed, Due, Grew, Happening, Lost, NotScored, Scored, Workers


def everything(n_max: int) -> int:
    """Return `n_max`: the restraint of an engine that is never too busy."""
    return n_max


class BestOfN:
    """One run of one request. `run` is called once; `trace` may be asked at any time, also after a cancellation.

    scorers: the one to use, then those to fall back on when it fails, best first.
    slots: the ceiling on concurrent candidates. allowed: from the policy's most candidates to what load permits now.
    """

    def __init__(
        self,
        request: Request,
        policy: Policy,
        *,
        engine: Engine,
        scorers: Sequence[Scorer],
        clock: Clock,
        selector: Selector | None = None,
        slots: Slots | None = None,
        allowed: Callable[[int], int] = everything,
    ) -> None:
        self._request = request
        self._policy = policy
        self._engine = engine
        self._clock = clock
        self._selector: Selector = selector or HighestScore()
        self._slots: Slots = slots or Unlimited()
        self._adaptive = policy.mode is Mode.ADAPTIVE
        self._live = request.stream and request.choices == 1 and policy.streaming is Streaming.LIVE
        self._milestones = [checkpoint.tokens for checkpoint in policy.checkpoints]
        if policy.commit_at is not None:
            insort(self._milestones, policy.commit_at)

        self._state = RunState(request, policy, scorers, clock, allowed)
        self._workers: Workers
        self._listener: Listener = unheard
        self._final_asked: set[int] = set()
        self._next_checkpoint = 0
        self._checkpoint_call: Asked | None = None
        self._settled: Candidate | None = None
        self._published: list[Candidate] = []

    async def run(self, listen: Listener = unheard) -> Outcome:
        """Return the outcome; `listen` hears each choice and its tokens as soon as they are settled.

        Cancelling it aborts every candidate at once. Raises `EngineError` only if no candidate could be returned, or
        the one that a streaming client was already given failed.
        """
        self._listener = listen
        await self._slots.take_first()
        self._state.start()
        try:
            async with asyncio.TaskGroup() as group:
                self._workers = Workers(group, self._engine, self._clock)
                try:
                    if self._policy.deadline_ms is not None:
                        self._workers.set_alarm(self._policy.deadline_ms / 1000)
                    await self._sample()
                    ranking = await self._pick()
                finally:
                    self._workers.dismiss()
        finally:
            self._state.close()
        return self._finish(ranking)

    @property
    def request(self) -> Request:
        """What is answered."""
        return self._request

    def trace(self) -> Trace:
        """Return the run so far: every candidate and every decision."""
        return self._state.trace()

    async def _sample(self) -> None:
        """Draw batch after batch until there is a reason to stop."""
        while self._state.stopped is None:
            # 1. Draw another batch, or be content.
            step = next_step(self._policy, self._state.progress())
            if isinstance(step, Stop):
                self._state.stop(step.reason)
            elif not await self._draw(step):
                self._state.stop(StopReason.CEILING)
            # 2 to 5. Until nothing more can come of this batch.
            while True:
                self._settle()
                self._ask_for_scores()
                if self._batch_is_over():
                    break
                await self._listen_until_it_matters()

    def _batch_is_over(self) -> bool:
        if self._settled is not None:
            return not self._settled.running
        if self._state.stopped is not None:
            return True
        return not self._judging() and not any(candidate.running for candidate in self._state.batch)

    def _judging(self) -> bool:
        """Tell whether a final score is being waited for."""
        return any(due.final for asked in self._state.pending for due in asked.due)

    # 1. Draw.

    async def _draw(self, draw: Draw) -> int:
        """Start a batch, as large as the ceiling allows; return its size."""
        state = self._state
        count = await self._take_slots(draw.count)
        state.shortened = draw.shortened + ((StopReason.CEILING,) if count < draw.count else ())
        if not count:
            return 0
        first = len(state.candidates)
        batch = state.candidates[-1].batch + 1 if state.candidates else 0
        state.batch = [
            Candidate(index, batch, self._sampling(index, draw.max_tokens), state.now())
            for index in range(first, first + count)
        ]
        state.candidates += state.batch
        self._next_checkpoint, self._checkpoint_call = 0, None
        for candidate in state.batch:
            self._workers.follow(self._request.prompt, candidate.sampling, self._slots.give_back)
        indices = tuple(candidate.index for candidate in state.batch)
        state.decisions.append(Drew(batch, indices, draw.count, draw.max_tokens, state.now(), state.shortened))
        return count

    async def _take_slots(self, wanted: int) -> int:
        if not self._state.candidates:
            return 1 + self._slots.take(wanted - 1)  # `run` has taken the first
        # The batch before has ended, but its slots come back only when its streams are closed, a moment later.
        await self._workers.closed()
        taken = self._slots.take(wanted)
        if not taken and not self._state.in_contention():
            await self._slots.take_first()
            return 1
        return taken

    def _sampling(self, index: int, max_tokens: int) -> Sampling:
        schedule = self._policy.annealing if self._adaptive else CONSTANT
        scorers = self._state.scorers
        return Sampling(
            candidate=index,
            temperature=schedule.temperature(self._request.temperature, index),
            seed=candidate_seed(self._request.seed, index),
            max_tokens=max_tokens,
            # What any of the scorers may come to read, as a stream cannot be asked for more later.
            top_logprobs=max((each.top_logprobs for each in scorers if each.top_logprobs is not None), default=None),
            readout_ids=next((each.readout_ids for each in scorers if each.readout_ids), ()),
        )

    # 2. Settle.

    def _settle(self) -> None:
        """Stop at a score that is good enough; give a streaming client a candidate as soon as it is certain."""
        state = self._state
        if state.stopped is not None:
            return
        progress = state.progress()
        if reached_threshold(self._policy, progress):
            state.stop(StopReason.THRESHOLD)
            for candidate in state.candidates:
                self._end(candidate, Fate.ABORTED)
            return
        if not self._live:
            return
        step = next_step(self._policy, progress)
        found = commit(
            [state.contender(candidate) for candidate in state.in_contention()],
            more_to_come=isinstance(step, Draw),
            threshold=self._policy.threshold if self._adaptive and progress.scored else None,
            commit_at=self._policy.commit_at,
        )
        if found is not None:
            state.stop(_reason(found, step))
            self._commit(found)

    def _commit(self, found: Commit) -> None:
        """Settle on a candidate that may still be running, and stop the others."""
        state = self._state
        self._settled = state.candidates[found.index]
        state.decisions.append(SettledOn(found.index, found.reason, state.now()))
        for candidate in state.candidates:
            if candidate is not self._settled:
                self._end(candidate, Fate.ABORTED)
        if self._live:
            self._publish(self._settled)

    def _publish(self, candidate: Candidate) -> None:
        """Give the client its next choice: that it is settled, then the tokens held back so far."""
        choice = len(self._published)
        self._published.append(candidate)
        self._listener(Committed(choice, candidate.index, candidate.token_count, self._state.now()))
        for step in candidate.steps:
            self._listener(Delta(choice, step))

    # 3. Score.

    def _ask_for_scores(self) -> None:
        """Have everyone who is due judged in one call, if a decision can turn on it."""
        state = self._state
        contenders = state.in_contention()
        if state.scorer is None or state.stopped is not None:
            return
        if len(contenders) == 1 and isinstance(next_step(self._policy, state.progress()), Stop):
            return
        due: list[Due] = []
        if self._adaptive or self._selector.needs_scores:
            due += self._final_due()
        place = self._checkpoint_due()
        if place is not None:
            tokens = self._policy.checkpoints[place].tokens
            due += [Due(candidate.index, tokens, final=False) for candidate in state.batch if candidate.running]
        if due:
            asked = self._ask(state.scorer, due, place)
            if place is not None:
                self._checkpoint_call = asked

    def _final_due(self) -> list[Due]:
        """Return who has ended and has not been judged; from here on they have been asked for."""
        found = [each for each in self._state.candidates if each.finished and each.index not in self._final_asked]
        self._final_asked.update(candidate.index for candidate in found)
        return [Due(candidate.index, candidate.token_count, final=True) for candidate in found]

    def _ask(self, scorer: Scorer, due: Sequence[Due], place: int | None) -> Asked:
        """Start a scoring call; nobody waits for it."""
        asked = Asked(scorer, tuple(due), place, self._state.now())
        self._state.pending.append(asked)
        self._workers.judge(asked, [self._state.candidates[each.candidate].beginning(each.tokens) for each in due])
        return asked

    def _checkpoint_due(self) -> int | None:
        """Return the place of the checkpoint that the batch has come to, passing over those that decide nothing.

        One at a time: until its scores are there the next one is not asked for, as some may not live to see it.
        """
        running = [candidate.token_count for candidate in self._state.batch if candidate.running]
        compared = sum(candidate.in_contention for candidate in self._state.batch)
        may_settle = self._live and self._adaptive and not self._state.scorer_failures
        # Whoever may have to name the best so far before any has ended needs scores to do it by.
        may_be_cut = (self._live and self._policy.commit_at is not None) or self._policy.deadline_ms is not None
        while running and self._checkpoint_call is None and self._next_checkpoint < len(self._policy.checkpoints):
            place = self._next_checkpoint
            checkpoint = self._policy.checkpoints[place]
            if not reached(checkpoint.tokens, running):
                break
            self._next_checkpoint += 1
            would_prune = kept(compared, checkpoint.keep, self._request.choices) < compared
            if would_prune or may_settle or (may_be_cut and compared > 1):
                return place
        return None

    # 4. Listen.

    async def _listen_until_it_matters(self) -> None:
        """Take in what happens, until something did that a decision may turn on."""
        matters = False
        while not matters:
            for happening in await self._workers.news():
                matters |= self._take_in(happening)

    def _take_in(self, happening: Happening) -> bool:
        """Enter one happening; return False if it was only tokens on the way to the next milestone."""
        match happening:
            case Grew(index, step):
                return self._grow(self._state.candidates[index], step)
            case Lost(index, error):
                candidate = self._state.candidates[index]
                if candidate.running:
                    candidate.error = error
                    candidate.end(Fate.FAILED, self._state.now())
                self._state.busy |= isinstance(error, EngineBusy)
            case Scored(asked, scores):
                self._state.enter_scores(asked, scores)
                if asked is self._checkpoint_call:  # and not one of a batch that was lost meanwhile
                    self._checkpoint_call = None
                    self._prune(asked, scores)
            case NotScored(asked, failure):
                self._fall_back(asked, failure)
            case DeadlinePassed():
                self._meet_deadline()
        return True

    def _grow(self, candidate: Candidate, step: GeneratedTokens) -> bool:
        if not candidate.running:
            return False  # stopped while these tokens were on their way
        before = candidate.token_count
        candidate.grow(step, self._state.now())
        if candidate is self._settled and self._live:
            self._listener(Delta(0, step))
        if step.finish_reason is None:
            return bisect(self._milestones, before) != bisect(self._milestones, candidate.token_count)
        candidate.finish_reason = step.finish_reason
        limit_is_ours = candidate.sampling.max_tokens < self._request.max_tokens
        candidate.complete = not (limit_is_ours and step.finish_reason == "length")
        candidate.end(Fate.FINISHED, self._state.now())
        return True

    def _fall_back(self, asked: Asked, failure: ScoringFailed) -> None:
        """Let the next scorer judge all candidates anew: scores of two scorers cannot be compared."""
        state = self._state
        state.enter_call(asked, error=str(failure))
        state.busy |= failure.engine_busy
        if asked.scorer is not state.scorer:
            return  # it has been replaced since it was asked
        state.scorer_failures += 1
        state.decisions.append(Degraded("scorer", asked.scorer.name, state.scorer_name, str(failure), state.now()))
        self._final_asked.clear()
        if self._checkpoint_call is not None and self._checkpoint_call.checkpoint is not None:
            self._next_checkpoint, self._checkpoint_call = self._checkpoint_call.checkpoint, None

    def _meet_deadline(self) -> None:
        state = self._state
        state.stop(StopReason.DEADLINE)
        running = [candidate for candidate in state.candidates if candidate.running]
        ended = any(candidate.finished for candidate in state.candidates)
        if running and not ended and self._policy.at_deadline is AtDeadline.FINISH:
            if self._settled is None:
                best = best_so_far([state.contender(candidate) for candidate in running])
                self._commit(Commit(best.index, CommitReason.DEADLINE))
            return
        for candidate in running:
            self._end(candidate, Fate.ABORTED)

    def _end(self, candidate: Candidate, fate: Fate) -> None:
        """Stop a candidate's work upstream, if there still is any."""
        if candidate.running:
            candidate.end(fate, self._state.now())
            self._workers.abort(candidate.index)

    # 5. Prune.

    def _prune(self, asked: Asked, scores: Sequence[Score]) -> None:
        """Stop the worst of the batch, now that its scores at the checkpoint are there."""
        state = self._state
        if asked.checkpoint is None or state.stopped is not None:
            return
        checkpoint = self._policy.checkpoints[asked.checkpoint]
        here = {due.candidate: score.value for due, score in zip(asked.due, scores, strict=True)}
        standings = [
            Standing(candidate.index, score, candidate.running)
            for candidate in state.batch
            if candidate.in_contention and (score := here.get(candidate.index, state.score(candidate))) is not None
        ]
        if not standings:
            return
        losers = prune(standings, checkpoint.keep, self._request.choices)
        for index in losers:
            self._end(state.candidates[index], Fate.PRUNED)
        compared = tuple(standing.index for standing in standings)
        values = tuple(standing.score for standing in standings)
        state.decisions.append(Pruned(state.batch[0].batch, checkpoint.tokens, compared, values, losers, state.now()))

    # 6. Pick.

    async def _pick(self) -> Ranking:
        """Return the indices of those that may be returned, best first; nothing if none may."""
        state = self._state
        if self._settled is not None:
            return () if self._settled.fate is Fate.FAILED else (self._settled.index,)
        finalists = state.finalists()
        if len(finalists) <= 1:
            return tuple(each.index for each in finalists)
        try:
            ranking = await self._workers.rank(self._selector, finalists, late=self._workers.late)
        except SelectionFailed as failure:
            failed, self._selector = self._selector.name, HighestScore()
            state.decisions.append(Degraded("selector", failed, self._selector.name, str(failure), state.now()))
            await self._score_all_that_ended()
            ranking = by_score(state.finalists())
        state.decisions.append(Picked(self._selector.name, ranking, state.now()))
        return ranking

    async def _score_all_that_ended(self) -> None:
        """Buy the final scores that the selector which failed had no need of, if there is still time."""
        state = self._state
        while state.scorer is not None and not self._workers.late:
            due = self._final_due()
            if due:
                self._ask(state.scorer, due, None)
            elif not self._judging():
                return
            await self._listen_until_it_matters()

    def _finish(self, ranking: Ranking) -> Outcome:
        if not ranking:
            raise self._state.why_nothing()
        chosen = ranking[: self._request.choices]
        for index in chosen:
            if self._state.candidates[index] not in self._published:
                self._publish(self._state.candidates[index])
        return self._state.outcome(chosen, self._selector.name)


def _reason(found: Commit, step: Draw | Stop) -> StopReason:
    """Return why the run stops once a candidate is settled on: what settled it, or what leaves it the only one."""
    if found.reason is CommitReason.CLEAR:
        return StopReason.THRESHOLD
    return step.reason if isinstance(step, Stop) and found.reason is CommitReason.ONE_LEFT else StopReason.COMMIT_AT
