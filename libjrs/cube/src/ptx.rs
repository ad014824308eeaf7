//! What the kernels become for an NVIDIA GPU, without one: PTX for sm_90 (Hopper), by the compiler that CubeCL calls there.

use std::ffi::CStr;
use std::sync::Arc;

use cubecl::Compiler;
use cubecl::ir::features::{Features, MmaConfig};
use cubecl::ir::nvidia::SmArch;
use cubecl::ir::{
    AddressType, DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    MemoryDeviceProperties, TargetProperties, VectorSize,
};
use cubecl::prelude::*;
use cubecl_llvm::nvptx::ptx_version::PtxVersion;
use cubecl_llvm::{LlvmTarget, PlironArtifact, PlironCompiler, PlironOptions};

/// A kernel with its assembly.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it is for.
    pub name: String,
    /// PTX, or why there is none.
    pub ptx: Result<String, String>,
}

/// Every kernel of this crate in the variants that the networks use.
pub fn kernels() -> Vec<Kernel> {
    let mut kernels = Offline::new();
    crate::conv3d::offline(&mut kernels);
    crate::leaky_norm::offline(&mut kernels);
    crate::channel_sums::offline(&mut kernels);
    crate::upsample_concat::offline(&mut kernels);
    crate::warp::offline(&mut kernels);
    crate::exact_sum::offline(&mut kernels);
    crate::patch::offline(&mut kernels);
    kernels.done
}

/// Compiles kernels for a GPU that is not there.
pub(crate) struct Offline {
    properties: Arc<DeviceProperties>,
    done: Vec<Kernel>,
}

impl Offline {
    fn new() -> Self {
        // Those of an H100.
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: 227 << 10,
            max_cube_count: (i32::MAX as u32, u16::MAX as u32, u16::MAX as u32),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            last_level_cache_size: None,
            max_vector_size: VectorSize::MAX,
            cube_mma_reserved_shared_memory: 0,
        };
        let identity =
            DeviceIdentity { name: "offline".into(), fingerprint: "offline".into(), physical: None };
        let mut features = Features::default();
        // Fragments of tensor cores that kernels of this crate use: CubeCL compiles no others.
        for (operand, k) in [(FloatKind::BF16, 16), (FloatKind::TF32, 8)] {
            let operand = ElemType::Float(operand);
            let cd_type = ElemType::Float(FloatKind::F32);
            let form = MmaConfig { a_type: operand, b_type: operand, cd_type, m: 16, n: 16, k };
            features.matmul.cmma.insert(form);
        }
        let properties = DeviceProperties::new(
            features,
            MemoryDeviceProperties::new(u64::MAX, 512),
            hardware,
            cubecl::profile::TimingMethod::Device,
            identity,
        );
        Self { properties: Arc::new(properties), done: Vec::new() }
    }

    /// Compiles the kernel that `make` gives, for cubes of so many units.
    pub(crate) fn add<K: CubeKernel>(
        &mut self,
        name: impl Into<String>,
        units: usize,
        make: impl FnOnce(KernelSettings, Arc<DeviceProperties>, Arc<TargetProperties>) -> K,
    ) {
        let dim = CubeDim::new_1d(units as u32);
        let settings = KernelSettings::new(*dim, ExecutionMode::Unchecked, AddressType::U32);
        let kernel = make(settings, self.properties.clone(), Arc::new(TargetProperties::default()));
        self.done.push(Kernel { name: name.into(), ptx: compile(kernel) });
    }
}

fn compile(kernel: impl CubeKernel) -> Result<String, String> {
    let mut compiler = PlironCompiler { target: LlvmTarget::Nvptx };
    let options = PlironOptions {
        sm_arch: Some(SmArch::new(90, true)),
        // What the driver of CUDA 12.8 loads.
        ptx_version: PtxVersion::for_driver(12080),
        ..Default::default()
    };
    match compiler.compile(kernel.define(), &options) {
        Ok(PlironArtifact::NvptxCode(module)) => {
            // SAFETY: the module's PTX ends with a NUL.
            Ok(unsafe { CStr::from_ptr(module.ptx.as_ptr()) }.to_string_lossy().into_owned())
        }
        Ok(_) => Err("not PTX".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// A buffer as a kernel's argument.
pub(crate) fn buffer() -> BufferCompilationArg {
    BufferCompilationArg { inplace: None }
}

/// Other arguments.
pub(crate) fn arg<T: LaunchArg>(value: T::RuntimeArg) -> T::CompilationArg {
    let settings = KernelSettings::new(*CubeDim::new_1d(1), ExecutionMode::Unchecked, AddressType::U32);
    let mut launcher = KernelLauncher::new(settings);
    let arg = T::register(value, &mut launcher);
    launcher.discard();
    arg
}
