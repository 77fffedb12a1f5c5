"""Scheduling: warps and blocks in an order drawn from a seed, or many blocks in lockstep."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from ptx_machine.decode import Step
from ptx_machine.memory import GlobalMemory, Shared
from ptx_machine.numbers import Mask
from ptx_machine.parse import MachineError
from ptx_machine.poison import Poison
from ptx_machine.program import Program
from ptx_machine.races import Clocks, Shadow, join
from ptx_machine.report import Executed, LaunchCounts, Report
from ptx_machine.warps import Warps

OVER = 1 << 30  # where lanes are that have returned
QUANTA = (20, 200, 1 << 30)  # instructions that a warp runs before another may
LOCKSTEP_LANES = 8192


class Launch:
    """One launch of a kernel: what its warps share."""

    def __init__(
        self, program: Program, grid: tuple[int, int, int], memory: GlobalMemory, parameters: bytes, report: Report
    ) -> None:
        self.program, self.grid, self.memory, self.parameters, self.report = program, grid, memory, parameters, report
        self.blocks = grid[0] * grid[1] * grid[2]
        self.counts = LaunchCounts(program.entry.name, grid, program.threads // 32)
        self.executed = [0] * len(program.steps)
        self.active: Counter[int] = Counter()  # executions with an active lane, of instructions with a predicate
        self.stretches: Counter[int] = Counter()  # the same for stretches without a branch, by their beginning
        self.left = 0  # instructions until the launch counts as one that does not end
        report.counts.append(self.counts)

    def finish(self) -> None:
        program, counts = self.program, self.counts
        for start, times in self.stretches.items():
            for at in range(start, program.end_of_run(start)):
                self.executed[at] += times
        counts.warps = self.blocks * program.threads // 32
        for name, times in zip(program.classes, self.executed, strict=True):
            if times:
                counts.instructions[name] += times
        for at, source in enumerate(program.entry.instructions):
            guarded = source.guard is not None and not program.steps[at].control
            active = self.active[at] if guarded else self.executed[at]
            counts.by_instruction.append(Executed(source.place, source.text, self.executed[at], active))
        for window in self.memory.windows:
            for direction, sectors in window.touched.items():
                counts.global_distinct[f"{window.name} {direction}"] = int(sectors.sum())
        for header, label in program.loops.items():
            counts.loop_trips[f"{program.entry.instructions[header].place} ({label})"] = self.executed[header]


class Runner:
    """Steps warps through a program. Lanes that part meet again where the lowest of their places comes by, or where an
    instruction waits for the whole warp."""

    def __init__(self, launch: Launch, count: int, shared: Shared) -> None:
        self.launch, self.program = launch, launch.program
        warps = Warps(self.program.entry, self.program.threads, self.program.watched, count, shared)
        self.warps = warps
        self.pc = 0
        self.pcs: np.ndarray | None = None  # one a lane while they differ
        self.waiting = np.zeros(warps.lanes, bool)  # at a barrier, in lockstep
        self._runs: dict[int, tuple[tuple[Callable[[], object], ...], int]] = {}
        self._single: dict[int, Callable[[Mask], None]] = {}
        self._poison = Poison(warps, self.program)

    def begin(self, launch: Launch, clocks: Clocks | None, blocks: np.ndarray, warps: np.ndarray) -> None:
        self.launch = launch
        self.warps.attach(launch.grid, launch.memory, launch.parameters, launch.counts, launch.report, clocks)
        self.warps.begin(blocks, warps)
        self.pc, self.pcs = 0, None
        self.waiting[:] = False
        self._poison.begin()

    # Binding, when first needed

    def _guard(self, at: int) -> np.ndarray | None:
        """The lanes for which the instruction's predicate holds; None if it has none."""
        guard = self.program.entry.instructions[at].guard
        if guard is None:
            return None
        predicate = self.warps.read(guard[0], "pred")
        return ~predicate if guard[1] else predicate

    def _one(self, at: int) -> Callable[[Mask], None]:
        """The instruction for the lanes of a mask, its predicate and its watched registers seen to."""
        cached = self._single.get(at)
        if cached is not None:
            return cached
        source = self.program.entry.instructions[at]
        run = self._poison.watch(at, self.program.steps[at].bind(self.warps))
        if source.guard is not None:
            plain = run
            predicate, negated = self.warps.read(source.guard[0], "pred"), source.guard[1]

            def run(mask: Mask) -> None:
                self._poison.guarded(at, mask)
                chosen = ~predicate if negated else predicate
                if mask is not None:
                    chosen = chosen & mask
                if chosen.any():
                    count = 1 if self.warps.count == 1 else int(chosen.reshape(-1, 32).any(1).sum())
                    self.launch.active[at] += count
                    plain(None if chosen.all() else chosen)

        self._single[at] = run
        return run

    def _fast(self, at: int) -> Callable[[], object]:
        step: Step = self.program.steps[at]
        reads, writes = self.program.registers[at]
        watched = not self.program.watched.isdisjoint((*reads, *writes))
        if step.fast is not None and self.program.entry.instructions[at].guard is None and not watched:
            return step.fast(self.warps)
        return partial(self._one(at), None)

    def _run_of(self, start: int) -> tuple[tuple[Callable[[], object], ...], int]:
        cached = self._runs.get(start)
        if cached is None:
            end = self.program.end_of_run(start)
            cached = self._runs[start] = (tuple(self._fast(at) for at in range(start, end)), end)
        return cached

    # Stepping

    def _spend(self, used: int) -> int:
        """Instructions executed, which count towards the launch's limit."""
        self.launch.left -= used * self.warps.count
        if self.launch.left < 0:
            raise MachineError(f"{self.program.entry.name} does not end: give a higher limit if it should")
        return used

    def run(self, budget: int) -> str:
        """Until "barrier", "done", or "ready" when the budget is used up."""
        launch, warps, steps = self.launch, self.warps, self.program.steps
        executed = launch.executed
        while budget > 0:
            if self.pcs is not None:
                used, state = self._divergent()
                budget -= self._spend(used)
                if state:
                    return state
                continue
            start = self.pc
            instructions, end = self._run_of(start)
            for instruction in instructions:
                instruction()
            launch.stretches[start] += warps.count
            budget -= self._spend(end - start + 1)
            self.pc = end
            control = steps[end].control
            if not control:
                continue
            executed[end] += warps.count
            if control == "yield":
                self._one(end)(None)
                self.pc = end + 1
                budget = 0
                continue
            holds = self._guard(end)
            self._poison.guarded(end, None)
            if holds is not None and not holds.all():
                if not holds.any():
                    self.pc = end + 1
                    continue
                self.pcs = np.full(warps.lanes, end)
                self._part(np.ones(warps.lanes, bool), end, holds)
                continue
            if control == "bra":
                self.pc = self.program.targets[end]
            elif control == "ret":
                warps.exited[:] = True
                return "done"
            else:
                return "barrier"
        return "ready"

    def _part(self, active: np.ndarray, at: int, holds: np.ndarray | None) -> str:
        """A control instruction for some lanes."""
        assert self.pcs is not None
        taken = active if holds is None else active & holds
        control = self.program.steps[at].control
        if control != "bar":
            self.pcs[active] = at + 1
        if control == "bra":
            self.pcs[taken] = self.program.targets[at]
        elif control == "ret":
            self.pcs[taken] = OVER
            self.warps.exited |= taken
        elif control == "bar":
            self.pcs[active & ~taken] = at + 1
            self.warps.require_converged(at, taken, None)
            self.waiting |= taken
            self.pcs[taken] = at
        if (self.pcs == OVER).all():
            return "done"
        return ""

    def _next(self, alive: np.ndarray) -> np.ndarray:
        """The lanes at the lowest place; not those that wait there for lanes of their warp that can still come."""
        assert self.pcs is not None
        places = np.unique(self.pcs[alive]).tolist()
        for at in places:
            if self._returns(at):
                continue
            here = alive & (self.pcs == at)
            if self.program.steps[at].waits:
                here &= (here == alive).reshape(-1, 32).all(1).repeat(32)
            if here.any():
                return here
        return alive & (self.pcs == places[0])

    def _returns(self, at: int) -> bool:
        return self.program.steps[at].control == "ret"

    def _divergent(self) -> tuple[int, str]:
        """One stretch for some lanes at one place."""
        pcs = self.pcs
        assert pcs is not None
        alive = (pcs < OVER) & ~self.waiting
        if not alive.any():
            return 1, "barrier" if (pcs < OVER).any() else "done"
        active = self._next(alive)
        at = int(pcs[active][0])
        if active.all():
            self.pc, self.pcs = at, None
            return 0, ""
        others = alive & ~active
        stop = int(pcs[others].min()) if others.any() else OVER
        count = int(active.reshape(-1, 32).any(1).sum())
        executed, used = self.launch.executed, 0
        while True:
            step = self.program.steps[at]
            executed[at] += count
            used += 1
            if step.control and step.control != "yield":
                self._poison.guarded(at, active)
                return used, self._part(active, at, self._guard(at))
            self._one(at)(active)
            at += 1
            if at == stop or step.control == "yield" or self.program.steps[at].waits or self._returns(at):
                pcs[active] = at
                return used, ""

    def pass_barrier(self, lanes: np.ndarray | None = None) -> None:
        """All warps have arrived: continue after the barrier."""
        if self.pcs is None:
            self.pc += 1
            return
        chosen = self.waiting if lanes is None else lanes
        self.pcs[chosen] += 1
        self.waiting &= ~chosen

    def barrier_place(self) -> int:
        return self.pc if self.pcs is None else int(self.pcs[self.waiting][0])


class BlockSlot:
    """A resident block: its warps and their shared memory. Serves one block after another."""

    def __init__(self, launch: Launch) -> None:
        per_block = launch.program.threads // 32
        self.shared = Shared(launch.program.shared, 1, per_block, races=True)
        self.runners = [Runner(launch, 1, self.shared) for _ in range(per_block)]
        self.states = ["done"] * per_block
        self.block = -1

    def begin(self, launch: Launch, clocks: Clocks, block: int) -> None:
        self.block = block
        self.shared.reset()
        for i, runner in enumerate(self.runners):
            warps = runner.warps
            warps.number = block * len(self.runners) + i
            warps.vector = clocks.fresh(warps.number)
            runner.begin(launch, clocks, np.array([block]), np.array([i]))
        self.states = ["ready"] * len(self.runners)

    def meet(self, launch: Launch) -> bool:
        """Release warps whose barrier is complete. False if no warp can continue."""
        program = launch.program
        groups: dict[tuple[int, int], list[int]] = {}
        for i, state in enumerate(self.states):
            if state == "barrier":
                groups.setdefault(program.steps[self.runners[i].barrier_place()].barrier, []).append(i)
        moved = False
        for (_, threads), members in groups.items():
            if len(members) * 32 >= (threads or 32 * len(self.runners)):
                launch.counts.barriers += 1
                join([self.runners[i].warps.vector for i in members], [self.runners[i].warps.number for i in members])
                for i in members:
                    self.runners[i].pass_barrier()
                    self.states[i] = "ready"
                moved = True
        return moved


def run_scheduled(launch: Launch, seed: int, resident: int, limit: int) -> None:
    """Several blocks at a time, warp by warp, in an order drawn from the seed."""
    program = launch.program
    launch.left = limit
    draw = random.Random(seed)
    clocks = Clocks(launch.blocks * program.threads // 32)
    for window in launch.memory.windows:
        if window.writable:
            window.buffer.shadow = window.buffer.shadow or Shadow(len(window.buffer.data), 0)
    waiting = list(range(launch.blocks))
    draw.shuffle(waiting)
    live: list[BlockSlot] = []
    with np.errstate(all="ignore"):
        while waiting or live:
            while waiting and len(live) < resident:
                slot = program.pool.pop() if program.pool else BlockSlot(launch)
                assert isinstance(slot, BlockSlot)
                slot.begin(launch, clocks, waiting.pop())
                live.append(slot)
            slot = draw.choice(live)
            ready = [i for i, state in enumerate(slot.states) if state == "ready"]
            if ready:
                i = draw.choice(ready)
                slot.states[i] = slot.runners[i].run(draw.choice(QUANTA))
            elif all(state == "done" for state in slot.states):
                live.remove(slot)
                program.pool.append(slot)
            elif not slot.meet(launch):
                stuck = next(r for r, state in zip(slot.runners, slot.states, strict=True) if state == "barrier")
                stuck.warps.find(
                    "deadlock", stuck.barrier_place(), "a barrier that not all of the block's warps come to"
                )
                live.remove(slot)
    launch.finish()


def run_lockstep(launch: Launch, limit: int) -> None:
    """Values, bounds and counts of many blocks at once; no orderings, and no block waits for another."""
    program = launch.program
    launch.left = limit
    per_block = program.threads // 32
    together = max(1, LOCKSTEP_LANES // program.threads)
    with np.errstate(all="ignore"):
        for first in range(0, launch.blocks, together):
            blocks = np.arange(first, min(first + together, launch.blocks))
            _lockstep(launch, blocks, per_block)
    launch.finish()


def _lockstep(launch: Launch, blocks: np.ndarray, per_block: int) -> None:
    count = len(blocks) * per_block
    shared = Shared(launch.program.shared, len(blocks), per_block, races=False)
    runner = Runner(launch, count, shared)
    warps = runner.warps
    warps.shared_offset = np.repeat(np.arange(len(blocks)) * shared.stride, launch.program.threads)
    runner.begin(launch, None, np.repeat(blocks, per_block), np.tile(np.arange(per_block), len(blocks)))
    while True:
        state = runner.run(1 << 30)
        if state == "done":
            return
        if state == "ready":
            continue
        if runner.pcs is None:
            launch.counts.barriers += len(blocks)
            runner.pass_barrier()
            continue
        alive = (runner.pcs < OVER).reshape(len(blocks), -1)
        waiting_lanes = runner.waiting.reshape(len(blocks), -1)
        complete = (waiting_lanes == alive).all(1) & alive.any(1)
        if not complete.any():
            warps.find("deadlock", runner.barrier_place(), "a barrier that not all of the block's warps come to")
            return
        launch.counts.barriers += int(complete.sum())
        runner.pass_barrier(np.repeat(complete, alive.shape[1]))
