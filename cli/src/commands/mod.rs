//! One module per command.

pub mod bench;
pub mod commission;
pub mod coordinator;
pub mod curves;
mod data;
pub mod demo;
pub mod evaluate;
pub mod k8s;
mod local_cluster;
pub mod model;
pub mod phantom;
pub mod plan;
pub mod prepare;
pub mod register;
pub mod runs;
mod tables;
pub mod train;
pub mod worker;

use jrs_telemetry::progress::{Phase, Progress};
use libjrs::align::{AlignOptions, Kind, align};
use libjrs::engine::{Compute, Device};
use libjrs::register::Prealign;
use libjrs::{Affine, Result, Volume};

/// How two scans are brought together before the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Align {
    /// Six degrees of freedom, by the bones.
    Rigid,
    /// Twelve degrees of freedom.
    Affine,
    /// As the scans lie in space.
    None,
}

impl Align {
    fn prealign(self) -> Prealign {
        let find = |kind| Prealign::Find(AlignOptions { kind, ..Default::default() });
        match self {
            Self::Rigid => find(Kind::Rigid),
            Self::Affine => find(Kind::Affine),
            Self::None => Prealign::Given(Affine::IDENTITY),
        }
    }

    /// The affine from fixed to moving points.
    fn find(self, fixed: &Volume<f32>, moving: &Volume<f32>) -> Result<Affine> {
        match self.prealign() {
            Prealign::Given(affine) => Ok(affine),
            Prealign::Find(options) => Ok(align(fixed, moving, &options)?.affine),
        }
    }
}

/// Arithmetic of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    F32,
    /// 16-bit "brain" floating point with sums in 32 bits, on GPUs and where the processor has AMX.
    Bf16,
    /// 19-bit TensorFloat with sums in 32 bits, on GPUs.
    Tf32,
}

impl From<Precision> for libjrs::engine::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::Tf32 => Self::Tf32,
        }
    }
}

/// What runs the network.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct ComputeArgs {
    /// What runs the network: cpu, cuda or cuda:N (a GPU; in builds with CUDA). There is no fall-back.
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE")]
    device: Device,
    /// Arithmetic of the network: bf16 is faster and needs a GPU or a processor with AMX, tf32 a GPU.
    #[arg(long, global = true, default_value = "f32")]
    precision: Precision,
}

impl ComputeArgs {
    /// Device and arithmetic, both at hand.
    fn checked(self) -> Result<Compute> {
        let compute = Compute { device: self.device, precision: self.precision.into() };
        compute.check().map(|()| compute)
    }
}

/// A progress bar (or plain log lines where there is no terminal) for `total` parts of `name`.
fn phase(name: &str, total: u64) -> Phase {
    Progress::detect().phase(name, total)
}
