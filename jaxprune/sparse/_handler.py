"""The function that XLA calls: it reads the call frame and starts the threads."""

from importlib import import_module
from typing import Any, no_type_check

from jaxprune.sparse import _abi as abi
from jaxprune.sparse import _worker as job
from jaxprune.sparse._conv_worker import conv_worker
from jaxprune.sparse._lanes import LINE, lanes


_KEPT: list[object] = []  # compiled functions, whose addresses others hold


@no_type_check
def handler(values, inputs, kind, minor):
    """Compiles the function that XLA calls with a call frame."""
    nb: Any = import_module("numba")

    words, add, call, stack = lanes()
    conv = kind == "conv"
    value_size, input_size = job.SIZES[values], job.SIZES[inputs]
    index = nb.uint16 if inputs == "uint16" else nb.uint32
    if conv:
        share, finish, chunks_of = conv_worker(values, inputs)
    else:
        share, finish, chunks_of = job.worker(values, inputs, kind == "many")
    word = nb.int64

    @nb.njit
    def ask(at, size, function, first, second, third):
        """Calls a function of XLA's; gives where its arguments are, 0 if it fails."""
        head = nb.carray(words(at), job.HEAD, word)
        api = nb.carray(words(head[job.API]), abi.FUTURE_SET + 1, word)
        argument, place = head[job.ARGUMENTS :], at + 8 * job.ARGUMENTS
        argument[0], argument[1] = size, 0
        argument[2], argument[3], argument[4] = first, second, third
        error = call(api[function], place)
        if error == 0:
            return place
        argument[0], argument[2] = 24, error
        call(api[abi.ERROR_DESTROY], place)
        return 0

    @nb.cfunc(nb.void(word))
    def task(at):
        if share(at):
            finish(at)
            head = nb.carray(words(at), job.HEAD, word)
            ask(at, 24, abi.FUTURE_SET, head[job.FUTURE], 0, 0)

    task_address = task.address
    _KEPT.append(task)

    @nb.njit
    def buffers(frame, place):
        """Gives the words of every buffer among arguments or results."""
        return nb.carray(words(frame[place]), frame[place - 2], word)

    @nb.njit
    def attribute(frame):
        """Gives the address of what the call was told, words."""
        first = nb.carray(words(frame[abi.ATTRS]), 1, word)[0]
        return nb.carray(words(first), abi.ARRAY + 1, word)[abi.ARRAY]

    @nb.njit
    def data(buffer):
        """Gives the address of a buffer's data, 0 if it is empty."""
        fields = nb.carray(words(buffer), abi.DIMS + 1, word)
        return fields[abi.DATA] if size(buffer, 0) else 0

    @nb.njit
    def size(buffer, axis):
        fields = nb.carray(words(buffer), abi.DIMS + 1, word)
        return nb.carray(words(fields[abi.DIMS]), axis + 1, word)[axis]

    @nb.njit
    def invert(at, head):
        """Has ORDER tell the output of each piece, not the piece of each output."""
        count = head[job.PIECES]
        order = nb.carray(words(head[job.ORDER]), count, index)
        behind = at + 8 * (job.HEAD + job.BLOCK * head[job.BLOCKS])
        output = nb.carray(words(behind), count, nb.uint32)
        for k in range(count):
            output[order[k]] = k
        head[job.ORDER] = behind

    @nb.njit
    def fill(frame, told, sums, at):
        """Writes the job that a call frame describes."""
        args, results = buffers(frame, abi.ARGS), buffers(frame, abi.RETS)
        value, blocks = data(args[1]), told[job.TOLD_BLOCKS]
        packed, scaled = told[job.BEHIND] != 0, told[job.SCALED]
        source = value + told[job.BEHIND] if packed else data(args[2])
        ends = args[2 if packed else 3 :]
        behind = attribute(frame) + 8 * job.TOLD
        shapes = nb.carray(words(behind), (blocks, 2), word)
        head = nb.carray(words(at), job.HEAD + job.BLOCK * blocks, word)
        head[job.NEXT] = head[job.JOINED] = head[job.FUTURE] = 0
        head[job.LEFT] = 1
        head[job.API], head[job.BLOCKS] = frame[abi.API], blocks
        head[job.X] = data(args[0])
        head[job.SCALE] = data(ends[0]) if scaled else 0
        head[job.BIAS] = data(ends[scaled]) if told[job.BIASED] else 0
        head[job.OUT], head[job.SUMS] = data(results[0]), sums
        head[job.IMAGES] = told[job.TOLD_IMAGES]
        head[job.BATCH], head[job.OUTPUTS] = size(results[0], 0), size(results[0], 1)
        first = chunks = 0
        for b in range(blocks):
            block = head[job.HEAD + job.BLOCK * b :]
            longest, wide = shapes[b, 0], shapes[b, 1]
            block[job.VALUES], block[job.INPUTS] = value, source
            block[job.LONGEST], block[job.WIDE] = longest, wide
            block[job.FIRST], block[job.BEGIN] = first, chunks
            value += longest * wide * value_size
            source += longest * wide * input_size
            first += wide
            chunks += chunks_of(longest, wide)
        head[job.CHUNKS], head[job.PIECES], head[job.ORDER] = chunks, first, source
        if conv:
            head[job.OWNER] = behind + 16 * blocks
            invert(at, head)
        else:
            head[job.OWNER] = source + first * input_size if told[job.CUT] else 0
        return head

    @nb.njit
    def helpers(frame, at, most):
        """Has threads of the pool take part, at most so many; tells if any may."""
        context = frame[abi.CONTEXT]
        head = nb.carray(words(at), job.HEAD, word)
        if most < 1 or not ask(at, 32, abi.THREADS, context, at + 8 * job.THREADS, 0):
            return False
        most = min(most, head[job.THREADS] - 1)
        if most < 1:
            return False
        made = ask(at, 16, abi.FUTURE_CREATE, 0, 0, 0)
        if not made:
            return False
        head[job.FUTURE] = nb.carray(words(made), 3, word)[2]
        add(at + 8 * job.LEFT, most)
        for _ in range(most):
            if not ask(at, 40, abi.SCHEDULE, context, task_address, at):
                add(at + 8 * job.LEFT, -1)
        frame[abi.FUTURE] = head[job.FUTURE]
        return True

    @nb.cfunc(word(word))
    def run(frame_address):
        frame = nb.carray(words(frame_address), abi.FUTURE + 1, word)
        extension = frame[abi.EXTENSION]
        if extension != 0:
            while extension != 0:
                fields = nb.carray(words(extension), 4, word)
                if fields[abi.KIND] & 0xFFFFFFFF == abi.METADATA_KIND:
                    answer = nb.carray(words(fields[abi.METADATA]), 6, word)
                    answer[abi.VERSION] = minor << 32
                    answer[abi.TRAITS] = 0
                    if minor > 1:
                        answer[abi.STATE] = 0
                extension = fields[abi.NEXT]
            return 0
        told = nb.carray(words(attribute(frame)), job.TOLD, word)
        results = buffers(frame, abi.RETS)
        sums = data(results[1]) if len(results) > 1 else stack()
        lines = -(-told[job.MOST] * told[job.ROOM] // LINE)
        at = sums + 4 * LINE * lines
        head = fill(frame, told, sums, at)
        most = min(told[job.MOST], head[job.CHUNKS]) - 1
        helped = helpers(frame, at, most)
        if share(at):
            finish(at)
            if helped:
                ask(at, 24, abi.FUTURE_SET, head[job.FUTURE], 0, 0)
        return 0

    _KEPT.append(run)
    return run
