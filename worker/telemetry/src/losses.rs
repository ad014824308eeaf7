//! Every loss of every step as CSV, each step exactly once however often the run was interrupted.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use libjrs::error::{Error, Result};

/// A CSV file `step,<column>,...` that grows by one row a step. Each row reaches the operating system before
/// [`row`](Self::row) returns, so a killed process loses none.
#[derive(Debug)]
pub struct LossTable {
    path: PathBuf,
    file: File,
    columns: usize,
    last_step: Option<u64>,
}

impl LossTable {
    /// Begins an empty table; an older file of that name is replaced.
    ///
    /// # Errors
    /// If the file cannot be written or a column's name has a comma, quote or line break.
    pub fn create(path: impl AsRef<Path>, columns: &[&str]) -> Result<Self> {
        Self::rewrite(path.as_ref(), columns, Vec::new())
    }

    /// Continues a table whose next row is that of `step`: rows of that step and later ones, and a last row that was
    /// cut short, are dropped, because training will do those steps again. If the file is gone a new one is begun.
    ///
    /// # Errors
    /// If the file cannot be read or written, or its header is not `step` and these columns.
    pub fn resume(path: impl AsRef<Path>, columns: &[&str], step: u64) -> Result<Self> {
        let path = path.as_ref();
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::io(path, source, "Check its permissions")),
        };
        let kept = rows_before(path, &text, columns, step)?;
        let table = Self::rewrite(path, columns, kept)?;
        if table.last_step.is_none() && step > 1 {
            tracing::warn!(path = %path.display(), step, "the loss table has no rows from before this step");
        }
        Ok(table)
    }

    /// Appends the row of `step`, one value for each column. Values are written so that they read back exactly.
    ///
    /// # Errors
    /// If the steps do not ascend, the number of values is not that of the columns, or the disk is full.
    pub fn row(&mut self, step: u64, values: &[f64]) -> Result<()> {
        if values.len() != self.columns || self.last_step.is_some_and(|last| last >= step) {
            return Err(Error::file(
                &self.path,
                format!(
                    "a row of step {step} with {} values does not follow step {:?} in a table of {} columns",
                    values.len(),
                    self.last_step,
                    self.columns
                ),
                "This is a mistake in the program; please report it",
            ));
        }
        let mut row = step.to_string();
        for value in values {
            row.push(',');
            row.push_str(&value.to_string());
        }
        row.push('\n');
        self.file.write_all(row.as_bytes()).map_err(|source| {
            Error::io(&self.path, source, "Free some space on this disk, then resume the run")
        })?;
        self.last_step = Some(step);
        Ok(())
    }

    /// Puts header and rows into a new file beside `path`, renames it to `path` and goes on at its end.
    fn rewrite(path: &Path, columns: &[&str], rows: Vec<Row<'_>>) -> Result<Self> {
        let unwritable = |source: std::io::Error| {
            Error::io(path, source, "Choose an output folder that you may write to and that has space left")
        };
        let header = header(path, columns)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(unwritable)?;
        let mut temporary = temporary_file(folder).map_err(unwritable)?;
        let lines = std::iter::once(header.as_str()).chain(rows.iter().map(|row| row.line));
        lines.into_iter().try_for_each(|line| writeln!(temporary, "{line}")).map_err(unwritable)?;
        temporary.as_file().sync_all().map_err(unwritable)?;
        temporary.persist(path).map_err(|error| unwritable(error.error))?;
        let file = OpenOptions::new().append(true).open(path).map_err(unwritable)?;
        let last_step = rows.last().map(|row| row.step);
        Ok(Self { path: path.to_owned(), file, columns: columns.len(), last_step })
    }
}

struct Row<'a> {
    step: u64,
    line: &'a str,
}

/// The whole rows of steps before `step`, in order.
fn rows_before<'a>(path: &Path, text: &'a str, columns: &[&str], step: u64) -> Result<Vec<Row<'a>>> {
    let expected = header(path, columns)?;
    // Only what ends in a line break was written whole.
    let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    match lines.next() {
        None => return Ok(Vec::new()),
        Some(found) if found == expected => {}
        Some(found) => {
            return Err(Error::file(
                path,
                format!("its header is {found:?}, not {expected:?}"),
                "Resume with the version and config that began it, or move the file away",
            ));
        }
    }
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (index, line) in lines.enumerate() {
        let row =
            parse_row(line, columns.len()).filter(|row| rows.last().is_none_or(|last| last.step < row.step));
        let Some(row) = row else {
            return Err(Error::file(
                path,
                format!("line {} cannot be a row of this table: {line:?}", index + 2),
                "Move the file away; resuming then begins a new one",
            ));
        };
        if row.step >= step {
            break;
        }
        rows.push(row);
    }
    Ok(rows)
}

fn parse_row(line: &str, columns: usize) -> Option<Row<'_>> {
    let mut fields = line.split(',');
    let step = fields.next()?.parse().ok()?;
    let values = fields.map(|field| field.parse::<f64>().ok()).collect::<Option<Vec<f64>>>()?;
    (values.len() == columns).then_some(Row { step, line })
}

fn header(path: &Path, columns: &[&str]) -> Result<String> {
    if let Some(name) = columns.iter().find(|name| name.contains([',', '"', '\n', '\r'])) {
        return Err(Error::file(
            path,
            format!("{name:?} cannot be the name of a column"),
            "Use letters, digits and underscores",
        ));
    }
    Ok(std::iter::once("step").chain(columns.iter().copied()).collect::<Vec<_>>().join(","))
}

/// A temporary file that others may read once it has its final name, as far as the umask allows.
fn temporary_file(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".losses-");
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(permissions);
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [&str; 2] = ["generator", "critic"];

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/losses.csv");
        (folder, path)
    }

    /// What step `step` of a deterministic training writes.
    fn train(table: &mut LossTable, steps: std::ops::Range<u64>) {
        for step in steps {
            table.row(step, &[1.0 / (step as f64 + 3.0), -0.1 * step as f64]).unwrap();
        }
    }

    #[test]
    fn rows_read_back_exactly() {
        let (_folder, path) = folder();
        let mut table = LossTable::create(&path, &COLUMNS).unwrap();
        table.row(3, &[0.1, f64::NAN]).unwrap();
        table.row(4, &[1e-300, f64::NEG_INFINITY]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(1)
            .map(|line| line.split(',').map(|field| field.parse().unwrap()).collect())
            .collect();
        assert_eq!(text.lines().next(), Some("step,generator,critic"));
        assert_eq!(rows[0][..2], [3.0, 0.1]);
        assert!(rows[0][2].is_nan());
        assert_eq!(rows[1], [4.0, 1e-300, f64::NEG_INFINITY]);
    }

    #[test]
    fn an_interrupted_training_leaves_the_same_table() {
        let (_folder, path) = folder();
        train(&mut LossTable::create(&path, &COLUMNS).unwrap(), 0..20);
        let whole = std::fs::read(&path).unwrap();
        for (cut_at, resumed_at) in [(13, 10), (20, 0), (10, 10), (20, 19)] {
            train(&mut LossTable::create(&path, &COLUMNS).unwrap(), 0..cut_at);
            train(&mut LossTable::resume(&path, &COLUMNS, resumed_at).unwrap(), resumed_at..20);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut_at}, resumed at {resumed_at}");
        }
    }

    #[test]
    fn a_row_cut_short_is_dropped() {
        let (_folder, path) = folder();
        train(&mut LossTable::create(&path, &COLUMNS).unwrap(), 0..5);
        let whole = std::fs::read(&path).unwrap();
        // Any cut within the last row, also one that still looks like a row.
        let last_row = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        for cut in last_row..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            train(&mut LossTable::resume(&path, &COLUMNS, 4).unwrap(), 4..5);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at byte {cut}");
        }
    }

    #[test]
    fn a_missing_table_is_begun_again() {
        let (_folder, path) = folder();
        train(&mut LossTable::resume(&path, &COLUMNS, 7).unwrap(), 7..8);
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("step,generator,critic\n7,"));
    }

    #[test]
    fn a_strange_file_is_refused_and_left_alone() {
        let (_folder, path) = folder();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let strange = [
            ("step,generator\n", "its header"),
            ("step,generator,critic\n0,1\n", "line 2"),
            ("step,generator,critic\n0,1,x\n1,1,1\n", "line 2"),
            ("step,generator,critic\n1,1,1\n1,1,1\n", "line 3"),
        ];
        for (text, named) in strange {
            std::fs::write(&path, text).unwrap();
            let error = LossTable::resume(&path, &COLUMNS, 9).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("losses.csv"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn rows_out_of_order_or_of_another_width_are_refused() {
        let (_folder, path) = folder();
        let mut table = LossTable::create(&path, &COLUMNS).unwrap();
        train(&mut table, 0..3);
        assert!(table.row(2, &[0.0, 0.0]).is_err());
        assert!(table.row(3, &[0.0]).is_err());
        assert!(LossTable::create(&path, &["a,b"]).is_err());
        let below_a_file = path.join("losses.csv");
        assert!(LossTable::create(&below_a_file, &COLUMNS).unwrap_err().to_string().contains("losses.csv"));
    }

    #[test]
    #[cfg(unix)]
    fn others_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, path) = folder();
        LossTable::create(&path, &COLUMNS).unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
}
