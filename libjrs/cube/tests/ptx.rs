//! The kernels as PTX for sm_90, and what they take of the GPU where `ptxas` is at hand (its path in `JRS_PTXAS`): registers,
//! shared memory, and what does not fit in registers (spills), which a forward convolution must not have.
#![cfg(feature = "ptx")]

use std::process::Command;

#[test]
fn every_kernel_assembles_for_sm_90() {
    let kernels = jrs_cube::ptx::kernels();
    assert!(kernels.len() > 20);
    let ptxas = std::env::var_os("JRS_PTXAS");
    if ptxas.is_none() {
        eprintln!("SKIPPED: assembling, as JRS_PTXAS does not name a ptxas");
    }
    let folder = std::env::temp_dir().join(format!("jrs-ptx-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    eprintln!("registers  shared  spilled  kernel");
    let mut failures = Vec::new();
    for (i, kernel) in kernels.iter().enumerate() {
        let ptx = match &kernel.ptx {
            Ok(ptx) => ptx,
            Err(error) => {
                failures.push(format!("{}: {error}", kernel.name));
                continue;
            }
        };
        assert!(ptx.contains(".target sm_90"), "{}", kernel.name);
        // Sums in f32 of products of these and no others.
        for (operands, instruction) in [
            ("bf16", "wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.bf16.f32"),
            ("tf32", "wmma.mma.sync.aligned.row.col.m16n16k8.f32.tf32.tf32.f32"),
        ] {
            let wanted = kernel.name.contains(operands);
            assert_eq!(ptx.contains(instruction), wanted, "{}: {instruction}", kernel.name);
        }
        let Some(ptxas) = &ptxas else { continue };
        let file = folder.join(format!("{i}.ptx"));
        std::fs::write(&file, ptx).unwrap();
        let run =
            Command::new(ptxas).args(["-v", "-arch=sm_90a", "-o", "/dev/null"]).arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&run.stderr);
        if !run.status.success() {
            failures.push(format!("{}: {text}", kernel.name));
            continue;
        }
        let before = |what: &str| -> usize {
            let number = text.split(what).next().filter(|_| text.contains(what));
            number.and_then(|t| t.rsplit(' ').find(|w| !w.is_empty())?.parse().ok()).unwrap_or(0)
        };
        let (registers, shared) = (before(" registers"), before(" bytes smem"));
        let spilled = before(" bytes spill stores");
        eprintln!("{registers:9} {shared:7} {spilled:8}  {}", kernel.name);
        if kernel.name.starts_with("conv3d forward") && spilled > 0 {
            failures.push(format!("{}: {spilled} bytes spilled", kernel.name));
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
