//! Backward passes of [`NetOps`]: each records the inputs its gradient kernel needs.

use super::{Autodiff, Backend, ConvSpec, FloatTensor, KernelOps, NetOps};
use burn::backend::ops::FloatTensorOps;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

impl<B: KernelOps, C: CheckpointStrategy> NetOps for Autodiff<B, C> {
    fn conv3d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: ConvSpec,
    ) -> FloatTensor<Self> {
        let guards = [x.node(), weight.node(), bias.node()];
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let y = B::conv3d_forward(x.clone(), weight.clone(), bias.into_primitive(), spec);
        match Conv3d.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight, spec), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn leaky_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let guards = [x.node(), gamma.node(), beta.node()];
        let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
        let statistics = statistics.into_primitive();
        let y = B::leaky_norm_forward(x.clone(), gamma.clone(), beta.into_primitive(), statistics.clone());
        match LeakyNorm.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, gamma, statistics), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn upsample_concat(deep: FloatTensor<Self>, skip: FloatTensor<Self>, crop: usize) -> FloatTensor<Self> {
        let guards = [deep.node(), skip.node()];
        let (deep, skip) = (deep.into_primitive(), skip.into_primitive());
        let y = B::upsample_concat_forward(deep.clone(), skip.clone(), crop);
        match UpsampleConcat.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((deep, skip, crop), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn warp(source: FloatTensor<Self>, u: FloatTensor<Self>, offset: usize) -> FloatTensor<Self> {
        let guards = [u.node()];
        let (source, u) = (source.into_primitive(), u.into_primitive());
        let y = B::warp_forward(source.clone(), u.clone(), offset);
        match Warp.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((source, u, offset), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[derive(Debug)]
struct Conv3d;

impl<B: KernelOps> Backward<B, 3> for Conv3d {
    type State = (FloatTensor<B>, FloatTensor<B>, ConvSpec);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (x, weight, spec) = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::conv3d_bias_gradient(dy.clone()));
        }
        if let Some(node) = weight_node {
            let dw = B::conv3d_weight_gradient(x.clone(), weight.clone(), dy.clone(), spec);
            grads.register::<B>(node.id, dw);
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::conv3d_input_gradient(x, weight, dy, spec));
        }
    }
}

#[derive(Debug)]
struct LeakyNorm;

impl<B: KernelOps> Backward<B, 3> for LeakyNorm {
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (x, gamma, statistics) = ops.state;
        let [x_node, gamma_node, beta_node] = ops.parents;
        let (dx, dparams) = B::leaky_norm_backward(x, gamma, statistics, dy);
        for (row, node) in [gamma_node, beta_node].into_iter().enumerate() {
            if let Some(node) = node {
                grads.register::<B>(node.id, row_of::<B>(dparams.clone(), row));
            }
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
    }
}

#[derive(Debug)]
struct UpsampleConcat;

impl<B: KernelOps> Backward<B, 2> for UpsampleConcat {
    type State = (FloatTensor<B>, FloatTensor<B>, usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (deep, skip, crop) = ops.state;
        let (ddeep, dskip) = B::upsample_concat_backward(deep, skip, dy, crop);
        for (gradient, node) in [ddeep, dskip].into_iter().zip(ops.parents) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Warp;

impl<B: KernelOps> Backward<B, 1> for Warp {
    type State = (FloatTensor<B>, FloatTensor<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (source, u, offset) = ops.state;
        let [u_node] = ops.parents;
        if let Some(node) = u_node {
            grads.register::<B>(node.id, B::warp_backward(source, u, dy, offset));
        }
    }
}

/// Row `row` of a `[2, channels]` tensor, as `[channels]`.
fn row_of<B: Backend>(rows: FloatTensor<B>, row: usize) -> FloatTensor<B> {
    use burn::backend::TensorMetadata;
    let channels = rows.shape()[1];
    let row = B::float_slice(rows, &[(row..row + 1).into(), (0..channels).into()]);
    <B as FloatTensorOps<B>>::float_reshape(row, [channels].into())
}
