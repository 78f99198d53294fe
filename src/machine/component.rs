//! Parts by their serial number, wherever they are: what is kept of each through exchanges and moves.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Inventory;

/// A part that can be told from every other one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Component {
    pub kind: ComponentKind,
    /// The MAC address of a NIC.
    pub serial: String,
    /// Part or model number; with it serial numbers of two makers are two parts.
    pub model: String,
    /// The slot, as far as it is known: `B4`, `bay 3`, `0000:3b:00.0`.
    pub place: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentKind {
    Board,
    Dimm,
    Disk,
    Nic,
}

impl ComponentKind {
    pub const ALL: [Self; 4] = [Self::Board, Self::Dimm, Self::Disk, Self::Nic];

    /// As it is kept.
    pub fn word(self) -> &'static str {
        match self {
            Self::Board => "board",
            Self::Dimm => "dimm",
            Self::Disk => "disk",
            Self::Nic => "nic",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

impl std::fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Board => "board",
            Self::Dimm => "DIMM",
            Self::Disk => "disk",
            Self::Nic => "NIC",
        })
    }
}

impl Component {
    /// What it is, wherever it is.
    pub fn identity(&self) -> (ComponentKind, &str, &str) {
        (self.kind, &self.serial, &self.model)
    }
}

impl Inventory {
    /// Each part with a serial number of its own. A number that two parts of one machine have is none.
    pub fn components(&self) -> Vec<Component> {
        let part = |kind, serial: Option<String>, model: Option<&str>, place: Option<&str>| {
            let text = |text: Option<&str>| text.unwrap_or_default().trim().to_owned();
            Some(Component { kind, serial: serial?, model: text(model), place: text(place) })
        };
        let serial = |serial: &Option<super::Serial>| serial.as_ref().map(ToString::to_string);
        let board = &self.board;
        let board = part(ComponentKind::Board, serial(&board.serial), board.product.as_deref(), None);
        let dimms = self
            .memory
            .dimms
            .iter()
            .map(|dimm| part(ComponentKind::Dimm, serial(&dimm.serial), dimm.part.as_deref(), Some(&dimm.slot)));
        let fixed = self.disks.iter().filter(|disk| !disk.removable && !disk.read_only);
        let disks = fixed
            .map(|disk| part(ComponentKind::Disk, serial(&disk.serial), disk.model.as_deref(), disk.slot.as_deref()));
        let nics =
            self.nics.iter().map(|nic| part(ComponentKind::Nic, Some(nic.mac.to_string()), None, nic.pci.as_deref()));
        let all: Vec<Component> = std::iter::once(board).chain(dimms).chain(disks).chain(nics).flatten().collect();
        let mut times: HashMap<_, usize> = HashMap::new();
        all.iter().for_each(|part| *times.entry(part.identity()).or_default() += 1);
        let once: Vec<bool> = all.iter().map(|part| times.get(&part.identity()) == Some(&1)).collect();
        all.into_iter().zip(once).filter_map(|(part, once)| once.then_some(part)).collect()
    }
}
