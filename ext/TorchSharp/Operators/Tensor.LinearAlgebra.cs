// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    public partial class Tensor
    {
        public Tensor adjoint() => Ops.adjoint.Call(this);
        public Tensor bmm(Tensor batch2) => Ops.bmm.Call(this, batch2);
        public Tensor cholesky(bool upper = false) => Ops.linalg_cholesky.Call(this, upper);
        public Tensor cholesky_inverse(bool upper = false) => Ops.cholesky_inverse.Call(this, upper);
        public Tensor cholesky_solve(Tensor input2, bool upper = false) => Ops.cholesky_solve.Call(this, input2, upper);
        public Tensor det() => Ops.det.Call(this);
        public Tensor dot(Tensor target) => Ops.dot.Call(this, target);
        public (Tensor a, Tensor tau) geqrf() => Ops.geqrf.Call2(this);
        public Tensor ger(Tensor vec2) => Ops.ger.Call(this, vec2);
        public Tensor inner(Tensor vec2) => Ops.inner.Call(this, vec2);
        public Tensor inverse() => Ops.inverse.Call(this);
        public Tensor kron(Tensor other) => Ops.kron.Call(this, other);
        public Tensor logdet() => Ops.logdet.Call(this);
        public Tensor matmul(Tensor target) => Ops.matmul.Call(this, target);
        public Tensor matrix_exp() => Ops.matrix_exp.Call(this);
        public Tensor matrix_power(int n) => Ops.matrix_power.Call(this, n);
        public Tensor mm(Tensor target) => Ops.mm.Call(this, target);
        public Tensor mv(Tensor target) => Ops.mv.Call(this, target);
        public Tensor ormqr(Tensor tau, Tensor other, bool left = true, bool transpose = false) => Ops.ormqr.Call(this, tau, other, left, transpose);
        public Tensor outer(Tensor vec2) => Ops.outer.Call(this, vec2);
        public Tensor pinverse(double rcond = 1E-15, bool hermitian = false) => Ops.linalg_pinv.Call(this, rcond, hermitian);
        public Tensor tensordot(Tensor b, long[] dims1, long[] dims2) => Ops.tensordot.Call(this, b, dims1, dims2);
        public Tensor vdot(Tensor target) => Ops.vdot.Call(this, target);
    }
}
