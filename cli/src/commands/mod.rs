//! One module per command.

pub mod bench;
pub mod coordinator;
pub mod curves;
mod data;
pub mod demo;
pub mod evaluate;
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
    /// The affine from fixed to moving points.
    fn find(self, fixed: &Volume<f32>, moving: &Volume<f32>) -> Result<Affine> {
        let kind = match self {
            Self::Rigid => Kind::Rigid,
            Self::Affine => Kind::Affine,
            Self::None => return Ok(Affine::IDENTITY),
        };
        Ok(align(fixed, moving, &AlignOptions { kind, ..Default::default() })?.affine)
    }
}

/// A progress bar (or plain log lines where there is no terminal) for `total` parts of `name`.
fn phase(name: &str, total: u64) -> Phase {
    Progress::detect().phase(name, total)
}
