"""What the threads of the sparse convolution do.

The image is padded and lies channel by channel, each channel row by row, so that one
weight sees all positions of an output channel in a run: the output at position p needs
the input at p plus a distance that belongs to the weight. Between the rows of the
output lie as many positions as the window is wider than one, which are thrown away.
A chunk is some output channels at all positions; its sums never leave the registers.
Where maxima are asked for, a thread takes them as soon as a channel is done.
"""

from importlib import import_module
from typing import Any, no_type_check

from jaxprune.sparse import _worker as job
from jaxprune.sparse._lanes import lanes, many_images, maxima_of_pairs


WIDTH = 16  # pieces of a chunk
# Vectors of 16 positions at a time. 7 of them, 14 registers of AVX2, leave two.
MOST = 7
STEP = 16 * MOST
NARROW, LINES = 8, 8  # columns of a narrow output, and rows of it at a time


@no_type_check
def conv_worker(values, inputs):
    """Compiles `jaxprune.sparse._worker.Worker` for a convolution.

    The word X of the job is the image, ORDER the output of each piece, OWNER the words
    of the window and the table of distances in bytes after them, IMAGES the positions.
    """
    nb: Any = import_module("numba")

    words, add, *_ = lanes()
    sizes = (MOST, 6, 4, 2, 1)
    seven, six, four, two, one = (
        many_images(values, inputs, 16, n, table=True) for n in sizes
    )
    lines = many_images(values, inputs, NARROW, LINES, table=True)
    pairs = maxima_of_pairs()
    value_size, input_size = job.SIZES[values], job.SIZES[inputs]
    word, single = nb.int64, nb.float32
    bits = {"float32": nb.uint32, "float16": nb.uint16, "int8": nb.uint8}[values]

    @nb.njit
    def chunks(longest, wide):
        return -(-wide // WIDTH)

    @nb.njit(inline="always")
    def live(block, wide, r):
        """Counts the weights of a piece, the padding after the last left out."""
        count = block[job.LONGEST]
        while count > 0:
            last = block[job.VALUES] + ((count - 1) * wide + r) * value_size
            if nb.carray(words(last), 1, bits)[0] != 0:
                break
            count -= 1
        return count

    @nb.njit(inline="always")
    def tile(block, wide, r, longest, at, count, head, window, to):
        """Computes `count` positions of a piece, from position `at` on.

        The last vectors end with the last position, and compute some anew: what they
        read lies within the image.
        """
        value = block[job.VALUES] + r * value_size
        source = block[job.INPUTS] + r * input_size
        x, table = head[job.X] + 4 * at, head[job.OWNER] + 8 * job.WINDOW
        if window[job.NARROW]:
            back, row = 4 * (window[job.STEP] - count), 4 * window[job.ROW]
            lines(value, source, wide, longest, x - back, table, to - back, row)
            return
        done, room = 0, at + count
        while done < count:
            left = count - done
            if left > 96 and room >= STEP:
                size = STEP
            elif left > 64 and room >= 96:
                size = 96
            elif left > 32 and room >= 64:
                size = 64
            elif left > 16 and room >= 32:
                size = 32
            else:
                size = 16
            done = min(done, count - size)
            near, here = x + 4 * done, to + 4 * done
            if size == STEP:
                seven(value, source, wide, longest, near, table, here, 64)
            elif size == 96:
                six(value, source, wide, longest, near, table, here, 64)
            elif size == 64:
                four(value, source, wide, longest, near, table, here, 64)
            elif size == 32:
                two(value, source, wide, longest, near, table, here, 64)
            else:
                one(value, source, wide, longest, near, table, here, 64)
            done += size

    @nb.njit(inline="always")
    def row(block, wide, r, head, window, to):
        """Computes all positions of a piece."""
        longest = live(block, wide, r)
        for position in range(0, window[job.COUNT], window[job.STEP]):
            count = min(window[job.STEP], window[job.COUNT] - position)
            near = to + 4 * position
            tile(block, wide, r, longest, position, count, head, window, near)

    @nb.njit
    def largest(sums, at, stride, pool):
        """Gives the maximum of a window that begins at a position, or NaN."""
        best = sums[at]
        for i in range(pool):
            for j in range(pool):
                other = sums[at + i * stride + j]
                if other > best or other != other:
                    best = other
        return best

    @nb.njit
    def ends(head, output):
        """Gives the factor of an output channel, and what is added."""
        count = head[job.PIECES]
        scale = nb.carray(words(head[job.SCALE]), count, single)
        bias = nb.carray(words(head[job.BIAS]), count, single)
        factor = scale[output] if head[job.SCALE] else single(1)
        return factor, bias[output] if head[job.BIAS] else single(0)

    @nb.njit
    def pooled(source, window, head, output):
        """Writes the maxima of an output channel, (pictures, rows, columns)."""
        pool, stride = window[job.POOL], window[job.ROW]
        rows, columns = window[job.ROWS], window[job.COLUMNS]
        factor, shift = ends(head, output)
        sums = nb.carray(words(source), head[job.IMAGES], single)
        to = head[job.OUT] + 4 * window[job.PICTURES] * rows * columns * output
        for b in range(window[job.PICTURES]):
            for i in range(rows):
                at = b * window[job.PLANE] + pool * i * stride
                out = nb.carray(words(to), columns, single)
                done = 0
                while pool == 2 and columns >= 4 and done < columns:
                    done = min(done, columns - 4)
                    upper, there = source + 4 * (at + 2 * done), to + 4 * done
                    pairs(upper, upper + 4 * stride, there, factor, shift)
                    done += 4
                for j in range(done, columns):
                    best = largest(sums, at + pool * j, stride, pool)
                    out[j] = best * factor + shift
                to += 4 * columns

    @nb.njit
    def share(at):
        head = nb.carray(words(at), job.HEAD, word)
        shape = (head[job.BLOCKS], job.BLOCK)
        blocks = nb.carray(words(at + 8 * job.HEAD), shape, word)
        pieces, images = head[job.PIECES], head[job.IMAGES]
        output = nb.carray(words(head[job.ORDER]), pieces, nb.uint32)
        window = nb.carray(words(head[job.OWNER]), job.WINDOW, word)
        own = head[job.SUMS] + 4 * images * add(at + 8 * job.JOINED, 1)
        while True:
            chunk = add(at + 8 * job.NEXT, 1)
            if chunk >= head[job.CHUNKS]:
                break
            b = head[job.BLOCKS] - 1
            while chunk < blocks[b, job.BEGIN]:
                b -= 1
            wide, first = blocks[b, job.WIDE], blocks[b, job.FIRST]
            begin = (chunk - blocks[b, job.BEGIN]) * WIDTH
            end = min(begin + WIDTH, wide)
            if window[job.POOL]:
                for r in range(begin, end):
                    row(blocks[b], wide, r, head, window, own)
                    pooled(own, window, head, output[first + r])
                continue
            for position in range(0, window[job.COUNT], window[job.STEP]):
                count = min(window[job.STEP], window[job.COUNT] - position)
                for r in range(begin, end):
                    longest = live(blocks[b], wide, r)
                    to = head[job.OUT] + 4 * (images * output[first + r] + position)
                    tile(blocks[b], wide, r, longest, position, count, head, window, to)
        return add(at + 8 * job.LEFT, -1) == 1

    @nb.njit
    def finish(at):
        head = nb.carray(words(at), job.HEAD, word)
        window = nb.carray(words(head[job.OWNER]), job.WINDOW, word)
        if window[job.POOL] or not (head[job.SCALE] or head[job.BIAS]):
            return
        shape = (head[job.PIECES], head[job.IMAGES])
        out = nb.carray(words(head[job.OUT]), shape, single)
        for k in range(shape[0]):
            factor, shift = ends(head, k)
            for p in range(shape[1]):
                out[k, p] = out[k, p] * factor + shift

    return job.Worker(share, finish, chunks)
