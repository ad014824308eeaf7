//! What a convolution says that it takes from the scratch pool is what it takes.

use jrs_kernels::pool::{Ledger, SCRATCH};
use jrs_kernels::{Conv3d, Epilogue};

/// Winograd's filtering and the direct way, small and large; the pool is the process's, so one test has it alone.
#[test]
fn scratch_is_what_is_taken() {
    let small =
        Conv3d { batch: 1, c_in: 16, c_out: 16, input: [8, 20, 24], kernel: 3, stride: 1, padding: 0 };
    let strided = Conv3d { stride: 2, padding: 1, input: [9, 64, 80], c_out: 32, ..small };
    let wide = Conv3d { c_in: 64, c_out: 64, input: [12, 70, 90], ..small };
    let head = Conv3d { c_out: 3, kernel: 1, ..small };
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut ledger = Ledger::default();
        SCRATCH.clear();
        for conv in [small, strided, wide, head, small] {
            conv.scratch(threads, &mut ledger);
            let [_, height, width] = conv.output();
            let planes = (conv.input[0] - conv.kernel) / conv.stride + 1;
            let x = vec![0.5; conv.input_len()];
            let weight = vec![0.1; conv.weight_len()];
            let mut y = vec![0.0; conv.c_out * planes * height * width];
            let bias = vec![0.0; conv.c_out];
            pool.install(|| conv.forward_planes(&x, &weight, &bias, Epilogue::None, &mut y, 0, planes));
        }
        let (taken, said) = (SCRATCH.peak(), ledger.peak());
        // Two threads need not have been at work together.
        assert!(taken <= said, "{threads} threads: {taken} values, not {said}");
        assert!(threads > 1 || taken == said, "{taken} values, not {said}");
    }
}
