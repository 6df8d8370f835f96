"""What the threads of the fast product do: take turns of the loop until none is left.

A product is a job, an array of words in a buffer of XLA's that lives as long as the
custom call. A chunk is some turns of one block; any thread takes the next one, and adds
to sums of its own, (pieces, images) each. Who ends last adds up the sums of all.
"""

from importlib import import_module
from typing import Any, NamedTuple, no_type_check

from jaxprune.sparse._lanes import lanes, many_images, one_image


# Words of a job; those of its blocks follow.
NEXT, LEFT, JOINED, API, FUTURE, CHUNKS, BLOCKS = range(7)
X, SUMS, OUT, ORDER, OWNER, SCALE = range(7, 13)
OUTPUTS, BATCH, IMAGES, PIECES, THREADS, BIAS = range(13, 19)
ARGUMENTS = 24  # of XLA's functions, 8 words
HEAD = 32
# Words of a block.
VALUES, INPUTS, LONGEST, WIDE, FIRST, BEGIN = range(6)
BLOCK = 6
# Words of what a call is told: the floats that each thread may write, the threads at
# most, images, the bytes in front of the inputs where these are packed with the values,
# whether outputs are cut, whether there is a scale, and a bias, blocks. (longest,
# pieces) of each block follow, and of a convolution the words below and its table.
ROOM, MOST, TOLD_IMAGES, BEHIND, CUT, SCALED, BIASED, TOLD_BLOCKS = range(8)
TOLD = 8
# Words in front of a convolution's table. Of IMAGES positions of an output channel
# COUNT are computed, STEP at a time, and where NARROW is not 0 of each row the first 8
# alone; maxima are taken where POOL is not 0.
COUNT, STEP, NARROW, ROW, PLANE, PICTURES, ROWS, COLUMNS, POOL = range(9)
WINDOW = 9
SIZES = {"float32": 4, "float16": 2, "int8": 1, "uint16": 2, "uint32": 4}  # bytes
CHUNK, FEWEST = 2**14, 16  # weights of a chunk, about, and turns at least


class Worker(NamedTuple):
    """Compiled functions of the address of a job.

    Attributes:
      share: works on it until no chunk is left, and tells whether it was the last.
      finish: writes the outputs.
      chunks: of the turns and pieces of a block: how many chunks it has.
    """

    share: Any
    finish: Any
    chunks: Any


@no_type_check
def worker(values, inputs, many):
    """Compiles the functions for two dtypes, and for one image or many."""
    nb: Any = import_module("numba")

    words, add, *_ = lanes()
    value_size, input_size = SIZES[values], SIZES[inputs]
    word, single = nb.int64, nb.float32
    natural = {"uint16": nb.uint16, "uint32": nb.uint32}[inputs]

    @nb.njit
    def turns(wide):
        return max(FEWEST, CHUNK // wide)

    sweep = (_matrix if many else _vector)(nb, values, inputs, value_size, input_size)

    @nb.njit
    def chunks(longest, wide):
        return -(-longest // turns(wide))

    @nb.njit
    def share(job):
        head = nb.carray(words(job), HEAD, word)
        blocks = nb.carray(words(job + 8 * HEAD), (head[BLOCKS], BLOCK), word)
        images = head[IMAGES]
        size = head[PIECES] * images
        own = head[SUMS] + 4 * size * add(job + 8 * JOINED, 1)
        zeros = nb.carray(words(own), size, single)
        for k in range(size):
            zeros[k] = 0
        while True:
            chunk = add(job + 8 * NEXT, 1)
            if chunk >= head[CHUNKS]:
                break
            b = head[BLOCKS] - 1
            while chunk < blocks[b, BEGIN]:
                b -= 1
            wide = blocks[b, WIDE]
            begin = (chunk - blocks[b, BEGIN]) * turns(wide)
            count = min(turns(wide), blocks[b, LONGEST] - begin)
            value = blocks[b, VALUES] + begin * wide * value_size
            source = blocks[b, INPUTS] + begin * wide * input_size
            sums = own + 4 * images * blocks[b, FIRST]
            sweep(value, source, wide, count, head[X], sums, images)
        return add(job + 8 * LEFT, -1) == 1

    @nb.njit
    def finish(job):
        head = nb.carray(words(job), HEAD, word)
        outputs, pieces, images = head[OUTPUTS], head[PIECES], head[IMAGES]
        joined, batch, size = head[JOINED], head[BATCH], pieces * images
        sums = nb.carray(words(head[SUMS]), joined * size, single)
        order = nb.carray(words(head[ORDER]), pieces, natural)
        owner = nb.carray(words(head[OWNER]), pieces, natural)
        scale = nb.carray(words(head[SCALE]), outputs, single)
        bias = nb.carray(words(head[BIAS]), outputs, single)
        for part in range(1, joined):
            for k in range(size):
                sums[k] += sums[part * size + k]
        for image in range(batch):
            out = nb.carray(words(head[OUT] + 4 * image * outputs), outputs, single)
            if head[OWNER] != 0:
                out[:] = 0
                for k in range(pieces):
                    out[owner[k]] += sums[order[k] * images + image]
            else:
                for k in range(pieces):
                    out[k] = sums[order[k] * images + image]
            if head[SCALE] != 0:
                for k in range(outputs):
                    out[k] *= scale[k]
            if head[BIAS] != 0:
                for k in range(outputs):
                    out[k] += bias[k]

    return Worker(share, finish, chunks)


@no_type_check
def _vector(nb, values, inputs, value_size, input_size):
    """Compiles turns of a block for one image."""
    four16, one16 = (one_image(values, inputs, 16, turns) for turns in (4, 1))
    four4, one1 = one_image(values, inputs, 4, 4), one_image(values, inputs, 1, 1)

    @nb.njit
    def vector(value, source, wide, count, x, sums, images):
        whole, most = wide - wide % 16, wide - wide % 4
        for _ in range(count // 4):
            for r in range(0, whole, 16):
                at, of = value + r * value_size, source + r * input_size
                four16(at, of, wide, x, sums + 4 * r)
            for r in range(whole, most, 4):
                at, of = value + r * value_size, source + r * input_size
                four4(at, of, wide, x, sums + 4 * r)
            for turn in range(4):
                for r in range(most, wide):
                    at = turn * wide + r
                    of = source + at * input_size
                    one1(value + at * value_size, of, wide, x, sums + 4 * r)
            value += 4 * wide * value_size
            source += 4 * wide * input_size
        for _ in range(count % 4):
            for r in range(0, whole, 16):
                at, of = value + r * value_size, source + r * input_size
                one16(at, of, wide, x, sums + 4 * r)
            for r in range(whole, wide):
                at, of = value + r * value_size, source + r * input_size
                one1(at, of, wide, x, sums + 4 * r)
            value += wide * value_size
            source += wide * input_size

    return vector


@no_type_check
def _matrix(nb, values, inputs, value_size, input_size):
    """Compiles turns of a block for 4, 8 or a multiple of 16 images."""
    four, eight = many_images(values, inputs, 4, 1), many_images(values, inputs, 8, 1)
    some, most = many_images(values, inputs, 16, 1), many_images(values, inputs, 16, 4)

    @nb.njit
    def matrix(value, source, wide, count, x, sums, images):
        row = 4 * images
        for _ in range(wide):
            if images == 4:
                four(value, source, wide, count, x, row, sums, 16)
            elif images == 8:
                eight(value, source, wide, count, x, row, sums, 32)
            else:
                done = 0
                while done < images:
                    at, to = x + 4 * done, sums + 4 * done
                    if images - done >= 64:
                        most(value, source, wide, count, at, row, to, 64)
                        done += 64
                    else:
                        some(value, source, wide, count, at, row, to, 64)
                        done += 16
            value += value_size
            source += input_size
            sums += row

    return matrix
