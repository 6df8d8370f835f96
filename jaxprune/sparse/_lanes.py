"""Vector code that numba does not write by itself, as its intrinsics.

numba cannot be told that arrays do not overlap, so LLVM leaves `sums[r] += v[r] *
x[i[r]]` scalar. Here the vectors are spelled out. Arrays are given by their addresses.
"""

from importlib import import_module
from typing import Any, NamedTuple, no_type_check


LINE = 16  # floats of a line of a cache
# Weights between the one that is multiplied and the one that is fetched. A processor
# fetches ahead by itself, but not into the next page: AlexNet's dense layers, which no
# cache holds, took 3.7 ms without, 3.2 with 1,536 and 2.4 with 5,000 to 16,000 (an AMD
# EPYC, one thread).
AHEAD = 2**13
STACK = 2**13  # bytes that a call may have there instead of in a buffer of XLA's


class Lanes(NamedTuple):
    """Intrinsics of numba; all arguments and results are of 64 bits.

    Attributes:
      words: (address): the address as a pointer, for `numba.carray`.
      add: (address, number): adds to a word, at once for all threads; gives the word
        as it was.
      call: (function, argument): calls a function of C of one pointer.
      stack: (): the address of `STACK` bytes that the calling function has to itself.
    """

    words: Any
    add: Any
    call: Any
    stack: Any


def _modules() -> tuple[Any, Any, Any]:
    """Imports what writes LLVM's code, and what makes numba take it."""
    nb: Any = import_module("numba")
    return (
        import_module("llvmlite.ir"),
        nb.types,
        import_module("numba.extending").intrinsic,
    )


@no_type_check
def lanes():
    """Makes the intrinsics that know no types of weights."""
    ir, types, intrinsic = _modules()

    word = ir.IntType(64)

    @intrinsic
    def words(typing, address):
        def code(context, builder, signature, args):
            return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

        return types.voidptr(types.int64), code

    @intrinsic
    def add(typing, address, number):
        def code(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], word.as_pointer())
            return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

        return types.int64(types.int64, types.int64), code

    @intrinsic
    def call(typing, function, argument):
        def code(context, builder, signature, args):
            kind = ir.FunctionType(word, [word]).as_pointer()
            return builder.call(builder.inttoptr(args[0], kind), [args[1]])

        return types.int64(types.int64, types.int64), code

    @intrinsic
    def stack(typing):
        def code(context, builder, signature, args):
            with builder.goto_entry_block():
                room = builder.alloca(ir.ArrayType(word, STACK // 8))
            room.align = 64
            return builder.ptrtoint(room, word)

        return types.int64(), code

    return Lanes(words, add, call, stack)


@no_type_check
def one_image(values, inputs, n, turns):
    """Makes an intrinsic: adds the products of n outputs' weights to their sums.

    Its arguments: addresses of the first value and its input, how many values lie
    between a weight of an output and the next, addresses of `x` and the first sum. The
    sums stay in registers meanwhile.

    Args:
      values: "float32", "float16" or "int8".
      inputs: "uint16" or "uint32".
      n: outputs.
      turns: weights of each.
    """
    ir, types, intrinsic = _modules()

    @intrinsic
    def turn(typing, value, source, stride, x, total):
        def code(context, builder, signature, args):
            value, source, stride, x, total = args
            first = builder.inttoptr(x, ir.FloatType().as_pointer())
            kind, word = _index(ir, inputs), ir.IntType(64)
            width = {"float32": 4, "float16": 2, "int8": 1}[values]
            sums = _load(ir, builder, total, ir.FloatType(), n)
            for _ in range(turns):
                if n >= LINE:
                    _prefetch(ir, builder, value, AHEAD * width)
                    _prefetch(ir, builder, source, AHEAD * kind.width // 8)
                weights = _weights(ir, builder, value, values, n)
                # Processors gather no faster than they load one by one.
                seen = ir.Constant(ir.VectorType(ir.FloatType(), n), ir.Undefined)
                for k, place in enumerate(_indices(ir, builder, source, kind, n)):
                    one = builder.load(builder.gep(first, [place]))
                    at = ir.Constant(ir.IntType(32), k)
                    seen = builder.insert_element(seen, one, at)
                sums = _multiply_add(builder, weights, seen, sums)
                step = lambda size: builder.mul(stride, ir.Constant(word, size))
                value = builder.add(value, step(width))
                source = builder.add(source, step(kind.width // 8))
            _store(ir, builder, total, sums)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), code

    return turn


@no_type_check
def _prefetch(ir, builder, address, distance):
    """Has the line `distance` bytes ahead of an address fetched; it may be nobody's."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    ahead = builder.add(address, ir.Constant(address.type, distance))
    read, near, data = (ir.Constant(number, k) for k in (0, 3, 1))
    builder.call(fetch, [builder.inttoptr(ahead, byte), read, near, data])


@no_type_check
def _indices(ir, builder, address, kind, n):
    """Loads n indices, as many at once as a word of 64 bits holds.

    Words are taken apart by shifts, for which processors have more room than for the
    extraction of elements of a vector: that took 1.7 times as long on an AMD EPYC.
    """
    word, bits = ir.IntType(64), kind.width
    size = 64 // bits
    if n % size:
        vector = _load(ir, builder, address, kind, n)
        at = [ir.Constant(ir.IntType(32), k) for k in range(n)]
        return [builder.zext(builder.extract_element(vector, k), word) for k in at]
    found, mask = [], ir.Constant(word, 2**bits - 1)
    for k in range(0, n, size):
        at = builder.add(address, ir.Constant(word, k * bits // 8))
        packed = builder.load(builder.inttoptr(at, word.as_pointer()), align=1)
        shifted = [
            builder.lshr(packed, ir.Constant(word, bits * j)) for j in range(size)
        ]
        found += [builder.and_(place, mask) for place in shifted]
    return found


@no_type_check
def many_images(values, inputs, n, vectors, table=False):
    """Makes an intrinsic: adds the products of one output's weights to its sums.

    Its arguments: addresses of the first value and its input, how many values lie
    between a weight and the next, their number, the address of `x` (inputs, images) at
    the first image, the bytes of a row of it, the address of the sums, and the bytes
    from a vector of images, and of sums, to the next. The sums of `n * vectors` images
    stay in registers meanwhile.

    With `table`, an input is looked up instead of multiplied by the bytes of a row: in
    their place comes the address of a table of bytes from `x`, of 64 bits each; and the
    sums begin at 0, whatever is there.
    """
    ir, types, intrinsic = _modules()
    cgutils: Any = import_module("numba.core.cgutils")

    vector, word = ir.VectorType(ir.FloatType(), n), ir.IntType(64)
    width = {"float32": 4, "float16": 2, "int8": 1}[values]

    @intrinsic
    def dot(typing, value, source, stride, count, x, row, total, apart):
        def code(context, builder, signature, args):
            value, source, stride, count, x, row, total, apart = args
            step = lambda k: builder.mul(apart, ir.Constant(word, k))
            held = [cgutils.alloca_once(builder, vector) for _ in range(vectors)]
            for k, sums in enumerate(held):
                at = builder.add(total, step(k))
                first = ir.Constant(vector, [0.0] * n)
                if not table:
                    first = _load(ir, builder, at, ir.FloatType(), n)
                builder.store(first, sums)
            with cgutils.for_range(builder, count) as loop:
                at = builder.mul(loop.index, stride)
                place = builder.add(value, builder.mul(at, ir.Constant(word, width)))
                weight = _weights(ir, builder, place, values, 1)
                weight = _splat(ir, builder, weight, n)
                kind = _index(ir, inputs)
                size = ir.Constant(word, kind.width // 8)
                place = builder.add(source, builder.mul(at, size))
                index = _load(ir, builder, place, kind, 1)
                index = builder.extract_element(index, ir.Constant(ir.IntType(32), 0))
                index = builder.zext(index, word)
                if table:
                    first = builder.inttoptr(row, word.as_pointer())
                    index = builder.load(builder.gep(first, [index]))
                else:
                    index = builder.mul(index, row)
                first = builder.add(x, index)
                for k, sums in enumerate(held):
                    place = builder.add(first, step(k))
                    seen = _load(ir, builder, place, ir.FloatType(), n)
                    new = _multiply_add(builder, weight, seen, builder.load(sums))
                    builder.store(new, sums)
            for k, sums in enumerate(held):
                _store(ir, builder, builder.add(total, step(k)), builder.load(sums))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), code

    return dot


@no_type_check
def maxima_of_pairs():
    """Makes an intrinsic: the maxima of four windows of 2 x 2 side by side, or NaN.

    Its arguments: addresses of the upper and the lower 8 numbers, and of the result; a
    factor and a number to add, of 32 bits, for every maximum.
    """
    ir, types, intrinsic = _modules()

    def at(places):
        return ir.Constant(ir.VectorType(ir.IntType(32), 4), list(places))

    @intrinsic
    def pairs(typing, upper, lower, out, factor, shift):
        def code(context, builder, signature, args):
            upper, lower, out, factor, shift = args
            rows = (_load(ir, builder, a, ir.FloatType(), 8) for a in (upper, lower))
            found = _maximum(builder, *rows)
            even = builder.shuffle_vector(found, found, at(range(0, 8, 2)))
            odd = builder.shuffle_vector(found, found, at(range(1, 8, 2)))
            found = _maximum(builder, even, odd)
            factor, shift = (_repeat(ir, builder, a, 4) for a in (factor, shift))
            found = builder.fadd(builder.fmul(found, factor), shift)
            _store(ir, builder, out, found)
            return context.get_dummy_value()

        words, numbers = [types.int64] * 3, [types.float32] * 2
        return types.void(*words, *numbers), code

    return pairs


@no_type_check
def _maximum(builder, a, b):
    """Takes the larger of two, NaN where either is."""
    # Unordered is true where either is NaN: then b is taken, unless a is the NaN.
    larger = builder.select(builder.fcmp_unordered(">", b, a), b, a)
    return builder.select(builder.fcmp_unordered("!=", a, a), a, larger)


@no_type_check
def _weights(ir, builder, address, values, n):
    """Loads n values as float32."""
    vector = ir.VectorType(ir.FloatType(), n)
    if values == "float32":
        return _load(ir, builder, address, ir.FloatType(), n)
    if values == "float16":
        return builder.fpext(_load(ir, builder, address, ir.HalfType(), n), vector)
    return builder.sitofp(_load(ir, builder, address, ir.IntType(8), n), vector)


@no_type_check
def _index(ir, inputs):
    return ir.IntType({"uint16": 16, "uint32": 32}[inputs])


@no_type_check
def _load(ir, builder, address, kind, n):
    vector = ir.VectorType(kind, n)
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


@no_type_check
def _store(ir, builder, address, vector):
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=4)


@no_type_check
def _repeat(ir, builder, number, n):
    """Makes a vector of one number."""
    one = ir.Constant(ir.VectorType(ir.FloatType(), 1), ir.Undefined)
    one = builder.insert_element(one, number, ir.Constant(ir.IntType(32), 0))
    return _splat(ir, builder, one, n)


@no_type_check
def _splat(ir, builder, vector, n):
    """Repeats the one element of a vector."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n)
    return builder.shuffle_vector(vector, vector, mask)


@no_type_check
def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))
