//! Check sums over what the file holds. Those of the rows are added up for each
//! table, so that a row that is missing, or an older one of the same key, is
//! found as well as one that is damaged.

use crate::state::Table;

/// All tables, by number.
const TABLES: [Table; 9] = [
    Table::Meta,
    Table::Node,
    Table::Key,
    Table::Owner,
    Table::Trust,
    Table::Handshakes,
    Table::Network,
    Table::Member,
    Table::Invitation,
];

/// Over parts; the length of each but the last is covered too.
fn crc(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for (n, part) in parts.iter().enumerate() {
        if n + 1 < parts.len() {
            hasher.update(&(part.len() as u64).to_be_bytes());
        }
        hasher.update(part);
    }
    hasher.finalize()
}

/// Of a row of the state.
pub(super) fn row_crc(table: Table, key: &[u8], value: &[u8]) -> u32 {
    crc(&[&[table as u8], key, value])
}

/// Of a batch of commands.
pub(super) fn batch_crc(first: i64, commands: &[u8]) -> u32 {
    crc(&[&first.to_be_bytes(), commands])
}

/// Of a row that describes the file.
pub(super) fn meta_crc(name: &str, value: &[u8]) -> u32 {
    crc(&[name.as_bytes(), value])
}

/// How many rows a table has, and the sum of their check sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) rows: u64,
    sum: u64,
}

impl Tally {
    pub(super) fn add(&mut self, crc: u32) {
        self.rows = self.rows.wrapping_add(1);
        self.sum = self.sum.wrapping_add(u64::from(crc));
    }

    pub(super) fn remove(&mut self, crc: u32) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(u64::from(crc));
    }
}

/// One of each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tallies([Tally; TABLES.len()]);

impl Tallies {
    pub(super) fn of(&mut self, table: Table) -> &mut Tally {
        &mut self.0[table as usize]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Table, Tally)> {
        TABLES.into_iter().zip(self.0)
    }

    /// The first table of which `found` is not as it should be, in words.
    pub(super) fn differs(&self, found: &Self) -> Option<String> {
        let differ = |((table, kept), (_, found)): ((Table, Tally), (Table, Tally))| {
            let problem = match kept.rows == found.rows {
                true => format!("rows of table {table:?} are not those of the last checkpoint"),
                false => format!(
                    "table {table:?} has {} rows, and should have {}",
                    found.rows, kept.rows
                ),
            };
            (kept != found).then_some(problem)
        };
        self.iter().zip(found.iter()).find_map(differ)
    }
}

/// How far the log reaches and who owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Number of the last command.
    pub(super) last: u64,
    /// How often the file was opened for writing: the writer's own number.
    pub(super) owner: u64,
}

impl Head {
    pub(super) fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.last.to_be_bytes());
        bytes[8..].copy_from_slice(&self.owner.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (last, rest) = bytes.split_first_chunk()?;
        let owner = u64::from_be_bytes(*rest.first_chunk()?);
        (rest.len() == 8).then_some(Self { last: u64::from_be_bytes(*last), owner })
    }
}

/// What the rows of the state are: the effect of so many commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) applied: u64,
    pub(super) tallies: Tallies,
}

impl Checkpoint {
    pub(super) fn encode(&self) -> Vec<u8> {
        let numbers = self.tallies.0.iter().flat_map(|t| [t.rows, t.sum]);
        std::iter::once(self.applied).chain(numbers).flat_map(u64::to_be_bytes).collect()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (chunks, rest) = bytes.as_chunks::<8>();
        let (applied, numbers) = chunks.split_first()?;
        if !rest.is_empty() || numbers.len() != 2 * TABLES.len() {
            return None;
        }
        let mut tallies = Tallies::default();
        for (tally, pair) in tallies.0.iter_mut().zip(numbers.as_chunks::<2>().0) {
            *tally = Tally { rows: u64::from_be_bytes(pair[0]), sum: u64::from_be_bytes(pair[1]) };
        }
        Some(Self { applied: u64::from_be_bytes(*applied), tallies })
    }
}
