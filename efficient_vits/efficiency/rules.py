"""What each operator costs: one table.

The rules are the seed paper's ("Which Transformer to Favor", Nauen et al., 2023): a multiply-add of
a matrix product or convolution is one FLOP, its bias is free, everything else that computes costs
something too, and what only moves or compares numbers is free. Costs per element of the functions
are those of the ELECTRA code (softmax 5, gelu 8) and of the Folding@home FAQ (exp and log 20; sine,
cosine, square root and reciprocal 1). A complex product counts like a real one, and integers are
free: an index is no floating-point number.

The backward pass has a table of its own, `gradients.py`, under the same name and version.

Dimensions come from an operator's own arguments. An operator without a rule is not guessed; it is
reported as uncounted.
"""

from efficient_vits.efficiency import operators
from efficient_vits.efficiency.operators import Rule

RULES_VERSION = "paper-1"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Names in `by_operator` that are multiply-adds of matrix products and convolutions.
MATRIX_PRODUCTS = _words(
    "linear matmul mm bmm mv dot vdot inner addmm addmv addbmm baddbmm tensordot grouped_mm einsum "
    "convolution convolution_mode conv1d conv2d conv3d"
)


def _for_all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


#: By the operator's name without "aten::", a leading "_" and the "_" of in-place variants.
RULES: dict[str, Rule] = {
    # Multiply-adds.
    **_for_all("linear matmul mm bmm mv dot vdot inner grouped_mm", operators.matrix_product(0)),
    **_for_all("addmm addmv baddbmm", operators.matrix_product(1)),
    "addbmm": operators.addbmm,
    "tensordot": operators.tensordot,
    "einsum": operators.einsum,
    "convolution": operators.maybe_transposed_convolution,
    **_for_all("convolution_mode conv1d conv2d conv3d", operators.convolution),
    "scaled_dot_product_attention": operators.attention,
    # Functions of each element.
    **_for_all(
        "add sub subtract rsub mul multiply div divide true_divide neg negative abs",
        operators.each_output(1),
    ),
    **_for_all("floor_divide remainder fmod frac square outer ger kron", operators.each_output(1)),
    **_for_all("sqrt rsqrt reciprocal sin cos leaky_relu prelu rrelu", operators.each_output(1)),
    # Clamped lines; the benchmark's counter leaves them out.
    **_for_all("hardswish hardsigmoid softshrink", operators.each_output(1)),
    **_for_all("addcmul addcdiv", operators.each_output(2)),
    **_for_all("lerp pow", operators.each_output(3)),
    **_for_all("dropout feature_dropout", operators.dropout),
    **_for_all("softmax log_softmax", operators.each_output(5)),
    "gelu": operators.each_output(8),
    **_for_all("exp exp2 expm1 log log2 log10 log1p erf", operators.each_output(20)),
    **_for_all("sigmoid tanh elu", operators.each_output(22)),  # an exponential and two operations
    **_for_all("silu glu selu celu", operators.each_output(23)),
    **_for_all("softplus", operators.each_output(41)),  # log(1 + exp(x))
    "log_sigmoid": operators.each_output(42),
    "mish": operators.each_output(64),  # x * tanh(softplus(x))
    # Normalisation.
    **_for_all("layer_norm native_layer_norm group_norm", operators.normalization(2)),
    **_for_all(
        "batch_norm instance_norm", operators.with_running_statistics(lambda call: call.constant(5))
    ),
    "rms_norm": operators.rms_norm,
    # Reductions.
    **_for_all("sum prod", operators.each_input(1, minus_output=1)),
    **_for_all(
        "mean adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", operators.each_input(1)
    ),
    **_for_all("cumsum cumprod", operators.cumulative),
    **_for_all("norm frobenius_norm linalg_vector_norm", operators.each_input(2, minus_output=1)),
    "linalg_norm": operators.matrix_or_vector_norm,
    "logsumexp": operators.log_sum_exp,
    **_for_all(
        "var std var_mean std_mean", operators.each_input(4)
    ),  # mean, deviation, square, mean
    "cdist": operators.pair_distances,
    # Adding up by index.
    **_for_all("scatter_add", operators.added_elements(2)),
    **_for_all("scatter_reduce", operators.added_elements(2, reduction=4)),
    "index_add": operators.added_elements(3),
    "index_reduce": operators.added_elements(3, reduction=4),
    "scatter": operators.scatter,
    "index_put": operators.index_put,
    # Fourier transforms; a real one costs half.
    **_for_all("fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn", operators.fourier(5)),
    **_for_all("fft_rfft fft_rfft2 fft_rfftn", operators.fourier(2.5, real_input=True)),
    **_for_all("fft_irfft fft_irfft2 fft_irfftn", operators.fourier(2.5)),
    # Pooling and resampling.
    "avg_pool1d": operators.average_pool(1),
    "avg_pool2d": operators.average_pool(2),
    "avg_pool3d": operators.average_pool(3),
    "upsample_linear1d": operators.each_output(2),
    "upsample_bilinear2d": operators.each_output(4),
    "upsample_trilinear3d": operators.each_output(8),
    "upsample_bicubic2d": operators.each_output(16),
    "upsample_bilinear2d_aa": operators.antialiased(2),
    "upsample_bicubic2d_aa": operators.antialiased(4),
    **_for_all("grid_sampler grid_sampler_2d grid_sampler_3d", operators.grid_sample),
}

#: Operators that move, compare, create, draw at random or describe numbers, and compute none.
FREE = _words(
    """
    alias as_strided atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat
    chunk clone col2im column_stack concat concatenate constant_pad_nd contiguous copy cpu cuda
    detach diag diag_embed diagonal dstack empty_like expand expand_as flatten flip fliplr flipud
    hsplit hstack im2col lift lift_fresh movedim moveaxis narrow numpy_T pad permute pin_memory
    pixel_shuffle pixel_unshuffle ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
    resolve_conj resolve_neg roll rot90 select split split_with_sizes squeeze stack swapaxes
    swapdims t tensor_split tile to transpose tril triu type_as unbind unflatten unfold unsqueeze
    unsafe_chunk unsafe_split view view_as vsplit vstack channel_shuffle complex conj conj_physical
    imag real view_as_complex view_as_real fft_fftshift fft_ifftshift

    arange empty empty_strided eye fill full full_like linspace logspace meshgrid new_empty
    new_full new_ones new_zeros ones ones_like scalar_tensor tensor tril_indices triu_indices zero
    zeros zeros_like bernoulli alpha_dropout exponential multinomial normal
    rand rand_like randint randint_like randn randn_like random randperm uniform

    embedding fill_diagonal gather index index_copy index_fill index_select masked_fill
    masked_scatter masked_select nonzero nonzero_numpy one_hot put scatter_copy select_scatter
    slice slice_scatter diagonal_scatter take take_along_dim where

    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d all allclose amax amin aminmax any
    argmax argmin argsort argwhere bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor bincount bucketize ceil clamp clamp_max clamp_min clip
    count_nonzero cummax cummin eq equal floor fmax fmin ge greater greater_equal gt hardtanh histc
    isclose isfinite isin isinf isnan isneginf isposinf kthvalue le less less_equal logical_and
    logical_not logical_or logical_xor lt max max_pool1d max_pool2d max_pool3d
    max_pool1d_with_indices max_pool2d_with_indices maximum median min minimum msort nan_to_num ne
    not_equal relu relu6 round searchsorted sgn sign signbit sort threshold topk trunc unique
    unique2 unique_consecutive unique_dim upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d

    __and__ __lshift__ __or__ __rshift__ __xor__ __iand__ __ior__ __ixor__ Bool Float Int
    ScalarImplicit IntImplicit FloatImplicit device dim is_floating_point is_nonzero item
    local_scalar_dense numel shape_as_tensor size
    """
)
