"""What the threads of the sparse convolution do.

The image is padded and lies channel by channel, each channel row by row, so that one
weight sees all positions of an output channel in a run: the output at position p needs
the input at p plus a distance that belongs to the weight. Between the rows of the
output lie as many positions as the window is wider than one, which are thrown away.
A chunk is some output channels at all positions; its sums never leave the registers.
"""

from importlib import import_module
from typing import Any, no_type_check

from jaxprune.sparse import _worker as job
from jaxprune.sparse._lanes import lanes, many_images


WIDTH = 16  # pieces of a chunk
# Vectors of 16 positions at a time. 7 of them, 14 registers of AVX2, leave two.
MOST = 7
STEP = 16 * MOST


@no_type_check
def conv_worker(values, inputs):
    """Compiles `jaxprune.sparse._worker.Worker` for a convolution.

    The word X of the job is the image, ORDER the output of each piece, OWNER the table
    of distances in bytes, IMAGES the positions.
    """
    nb: Any = import_module("numba")

    words, add, _ = lanes()
    sizes = [many_images(values, inputs, 16, n, table=True) for n in (MOST, 4, 2, 1)]
    seven, four, two, one = sizes
    value_size = {"float32": 4, "float16": 2, "int8": 1}[values]
    input_size = {"uint16": 2, "uint32": 4}[inputs]
    word, single = nb.int64, nb.float32
    bits = {"float32": nb.uint32, "float16": nb.uint16, "int8": nb.uint8}[values]

    @nb.njit
    def chunks(longest, wide):
        return -(-wide // WIDTH)

    @nb.njit
    def live(block, wide, r):
        """Counts the weights of a piece, the padding after the last left out."""
        count = block[job.LONGEST]
        while count > 0:
            last = block[job.VALUES] + ((count - 1) * wide + r) * value_size
            if nb.carray(words(last), 1, bits)[0] != 0:
                break
            count -= 1
        return count

    @nb.njit
    def tile(block, wide, r, at, count, head, to):
        """Computes `count` positions of a piece, from position `at` on."""
        sums = nb.carray(words(to), count, single)
        for k in range(count):
            sums[k] = 0
        value = block[job.VALUES] + r * value_size
        source = block[job.INPUTS] + r * input_size
        longest, x, table = live(block, wide, r), head[job.X] + 4 * at, head[job.OWNER]
        done = 0
        while done < count:
            near, here = x + 4 * done, to + 4 * done
            left = count - done
            if left >= STEP:
                seven(value, source, wide, longest, near, table, here)
                done += STEP
            elif left >= 64:
                four(value, source, wide, longest, near, table, here)
                done += 64
            elif left >= 32:
                two(value, source, wide, longest, near, table, here)
                done += 32
            else:
                one(value, source, wide, longest, near, table, here)
                done += 16

    @nb.njit
    def share(at):
        head = nb.carray(words(at), job.HEAD, word)
        shape = (head[job.BLOCKS], job.BLOCK)
        blocks = nb.carray(words(at + 8 * job.HEAD), shape, word)
        pieces, images = head[job.PIECES], head[job.IMAGES]
        output = nb.carray(words(head[job.ORDER]), pieces, nb.uint32)
        while True:
            chunk = add(at + 8 * job.NEXT, 1)
            if chunk >= head[job.CHUNKS]:
                break
            b = head[job.BLOCKS] - 1
            while chunk < blocks[b, job.BEGIN]:
                b -= 1
            wide, first = blocks[b, job.WIDE], blocks[b, job.FIRST]
            begin = (chunk - blocks[b, job.BEGIN]) * WIDTH
            for position in range(0, images, STEP):
                count = min(STEP, images - position)
                for r in range(begin, min(begin + WIDTH, wide)):
                    row = head[job.OUT] + 4 * images * output[first + r]
                    to = row + 4 * position
                    tile(blocks[b], wide, r, position, count, head, to)
        return add(at + 8 * job.LEFT, -1) == 1

    @nb.njit
    def finish(at):
        head = nb.carray(words(at), job.HEAD, word)
        if head[job.SCALE] != 0:
            outputs, images = head[job.PIECES], head[job.IMAGES]
            scale = nb.carray(words(head[job.SCALE]), outputs, single)
            out = nb.carray(words(head[job.OUT]), (outputs, images), single)
            for k in range(outputs):
                out[k] *= scale[k]

    return job.Worker(share, finish, chunks)
