"""What of an output may be given out: everything, unless it may yet become a stop word.

Tokens are held back for as long as `engine.stopping` is not sure of them, and with them their log-probabilities and
what is counted of the steps that made them, so that counters agree with what was given out at any time. Those that turn
out to belong to a stop word are never given out; a step all of whose tokens do counts like one that met an end token.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from engine.automaton import Automaton
from engine.request import GenerationRequest
from engine.stopping import StopWatch


@dataclass(frozen=True, slots=True)
class StepCount:
    """What is counted of one step.

    Attributes:
        emitted: tokens.
        nodes, depth: of its draft.
        accepted: how many of the tokens, the first ones, were drafted.
    """

    emitted: int
    nodes: int = 0
    depth: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """What is given out now: tokens, their log-probabilities if there are any, and whole steps.

    `cut`: characters at the end of the text that do not belong to it, since a stop word begins within the last token.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    steps: tuple[StepCount, ...]
    cut: int = 0


class Gate:
    """The output of one request on its way out.

    Args:
        watch: looks for stop words; None: there are none.
        sequences: of tokens that end the output, too; None: there are none.
        earlier: tokens that earlier calls have emitted, which may be the beginning of a sequence.

    Attributes:
        given: tokens that have been given out.
    """

    def __init__(
        self,
        watch: StopWatch | None = None,
        sequences: Automaton[int] | None = None,
        earlier: Sequence[int] = (),
    ) -> None:
        self.given = 0
        self._watch = watch
        self._sequences, self._state = sequences, 0
        for token in earlier:
            self._ends_with_a_sequence(token)
        self._tokens: list[int] = []
        self._log_probs: list[float] = []
        self._steps: deque[StepCount] = deque()
        self._counted = 0  # tokens of the steps that have been given out

    @classmethod
    def of(cls, request: GenerationRequest) -> "Gate":
        """The gate for a request's stop words and stop sequences."""
        earlier = request.prompt[request.prompt_length :]
        watch = request.stop_words.watch(earlier) if request.stop_words else None
        return cls(watch, request.stop_automaton, earlier)

    @property
    def stopped(self) -> bool:
        """Whether a stop word has ended the output."""
        return self.stop_word != ""

    @property
    def stop_word(self) -> str:
        """The word that has ended the output, or what of it this call has generated; "" if none has."""
        end = self._watch.end if self._watch else None
        return end.word if end else ""

    def add(self, token: int) -> bool:
        """Take in a token; whether a stop word or a stop sequence is complete."""
        self._tokens.append(token)
        if self._watch is not None and self._watch.add(token):
            return True
        return self._ends_with_a_sequence(token)

    def end_step(self, step: StepCount, log_probs: Sequence[float] = ()) -> None:
        """The tokens since the last call were those of one step."""
        self._steps.append(step)
        self._log_probs.extend(log_probs)

    def release(self, *, ended: bool) -> Release:
        """What may be given out since the last call; the rest, if the output has ended."""
        watch, cut = self._watch, 0
        count = len(self._tokens)
        if watch is not None:
            if ended:
                watch.close()
            if watch.end is not None:
                count, cut = watch.end.tokens - self.given, watch.end.cut
            elif not ended:
                count = watch.safe - self.given
        tokens, log_probs = tuple(self._tokens[:count]), tuple(self._log_probs[:count])
        del self._tokens[:count], self._log_probs[:count]
        self.given += count
        return Release(tokens, log_probs, self._whole_steps(ended=ended), cut)

    def abandon(self) -> Release:
        """Nothing more is given out; what is counted of it is."""
        return Release((), (), self._whole_steps(ended=True))

    def _ends_with_a_sequence(self, token: int) -> bool:
        if self._sequences is None:
            return False
        self._state = self._sequences.step(self._state, token)
        return self._sequences.found[self._state] > 0

    def _whole_steps(self, *, ended: bool) -> tuple[StepCount, ...]:
        steps = []
        while self._steps and (ended or self._counted + self._steps[0].emitted <= self.given):
            step = self._steps.popleft()
            emitted = max(0, min(step.emitted, self.given - self._counted))
            self._counted += step.emitted
            steps.append(StepCount(emitted, step.nodes, step.depth, min(step.accepted, emitted)))
        return tuple(steps)
