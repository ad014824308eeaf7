//! The reference anatomy of one patient as signed distances in a template frame.
//!
//! The template frame has its origin midway between the femoral heads (LPS, mm). Patients differ by the
//! sizes of their parts and by a smooth map from patient to template (see `motion`).

pub mod body;
pub mod bones;
pub mod muscles;
pub mod organs;
pub mod profile;
pub mod shape;
pub mod vessels;

use crate::draw::Draw;
use body::Body;
use bones::{BoneSample, Bones};
use libjrs::geometry::Point;
use muscles::Muscles;
use organs::{Organs, RECTUM_WALL};
use vessels::{Bowel, Vessels};

/// Label ids and names, in the order of tables.
pub const ORGANS: [(u8, &str); 5] =
    [(1, "prostate"), (2, "seminal vesicles"), (3, "lymph nodes"), (4, "rectum"), (5, "bladder")];

/// Everything that is where it is in the reference state of a patient.
pub struct Anatomy {
    /// Contoured organs.
    pub organs: Organs,
    /// Skeleton.
    pub bones: Bones,
    /// Outline.
    pub body: Body,
    /// Vessels and nodes.
    pub vessels: Vessels,
    bowel: Bowel,
    muscles: Muscles,
}

/// Signed distances (mm, negative inside) at one point.
#[derive(Debug, Clone, Copy)]
pub struct Tissue {
    /// Skin surface.
    pub skin: f64,
    /// Bone and its composition.
    pub bone: BoneSample,
    /// Outer surface of the prostate.
    pub prostate: f64,
    /// Seminal vesicles.
    pub vesicles: f64,
    /// Nodal region.
    pub nodes: f64,
    /// Rectum as contoured (outer wall, cut at both ends).
    pub rectum: f64,
    /// The same tube without ends.
    pub tube: f64,
    /// Outer surface of the bladder.
    pub bladder: f64,
    /// Vessels.
    pub vessel: f64,
    /// Small nodes.
    pub bead: f64,
    /// Muscle.
    pub muscle: f64,
    /// Outer wall of other bowel.
    pub bowel: f64,
}

impl Anatomy {
    /// Draws a patient; `scale` is the factor from template to patient along each axis.
    pub fn draw(draw: &mut Draw, scale: [f64; 3]) -> Self {
        let organs = Organs::draw(draw, scale.iter().product());
        let body = Body::draw(draw, scale);
        let bones = Bones::new(draw.gauss(1.0, 0.15));
        let muscles = Muscles::new(draw.gauss(0.0, 1.0));
        let vessels = Vessels::draw(draw);
        let bowel = Bowel::draw(draw, (organs.bladder_center[2] + 0.7 * organs.bladder_radii[2]).min(62.0));
        Self { organs, bones, body, vessels, bowel, muscles }
    }

    /// All distances at a template point inside the body; `None` in air.
    #[inline]
    pub fn tissue(&self, p: Point) -> Option<Tissue> {
        let (skin, fascia) = self.body.distances(p);
        if skin > 3.0 {
            return None;
        }
        let bone = self.bones.sample(p);
        let mut tissue = Tissue {
            skin,
            bone,
            prostate: 1e3,
            vesicles: 1e3,
            nodes: 1e3,
            rectum: 1e3,
            tube: 1e3,
            bladder: 1e3,
            vessel: self.vessels.vessel(p),
            bead: self.vessels.bead(p),
            muscle: self.muscles.distance(p, fascia, &self.organs),
            bowel: 1e3,
        };
        // Everything else lies within the pelvis, away from the skin.
        if fascia < 0.0 && p[0].abs() < 125.0 {
            let organs = &self.organs;
            tissue.prostate = organs.prostate(p);
            tissue.vesicles = organs.vesicles(p);
            tissue.bladder = organs.bladder(p).max(-tissue.vesicles + 0.3);
            tissue.tube = organs.bowel_tube(p);
            tissue.rectum = organs.rectum(p).max(-tissue.vesicles + 0.3);
            let solid = tissue.bladder.min(tissue.tube).min(tissue.prostate);
            tissue.bowel = self.bowel.distance(p).max(3.0 - solid).max(fascia + 16.0);
            if tissue.bowel > tissue.tube && p[2] > organs::RECTUM_TOP {
                tissue.bowel = tissue.tube;
            }
            tissue.nodes = self
                .vessels
                .region(p)
                .max(1.0 - bone.distance)
                .max(-tissue.muscle)
                .max(-tissue.bladder + 1.0)
                .max(-tissue.tube + 1.0);
        }
        Some(tissue)
    }

    /// True where the content changes from scan to scan (rectal and bowel lumen), so that no point of
    /// another scan corresponds.
    #[inline]
    pub fn is_lumen(&self, p: Point) -> bool {
        if p[0].abs() > 125.0 || p[1].abs() > 100.0 {
            return false;
        }
        // Cheap tests first: most points are near neither.
        let (tube, bowel) = (self.organs.bowel_tube(p), self.bowel.distance(p));
        if tube >= -RECTUM_WALL && bowel >= -RECTUM_WALL {
            return false;
        }
        self.tissue(p).is_some_and(|t| t.rectum.max(t.tube) < -RECTUM_WALL || t.bowel < -RECTUM_WALL)
    }
}

impl Tissue {
    /// The label at this point; 0 outside every contour.
    #[inline]
    pub fn label(&self) -> u8 {
        let inside = [self.prostate, self.vesicles, self.nodes, self.rectum, self.bladder].map(|d| d < 0.0);
        // Prostate and vesicles first, then hollow organs, then the nodal region that surrounds them.
        [0, 1, 4, 3, 2].into_iter().find(|&n| inside[n]).map_or(0, |n| n as u8 + 1)
    }
}
