//! A self-contained HTML page: inline style, pictures inside, no scripts, nothing loaded from elsewhere.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::svg::escape;
use crate::table::Table;

/// The outcome of the quality checks of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// All checks passed.
    Ok,
    /// A person should look before use.
    Review,
    /// Not to be used.
    Reject,
    /// A test was passed.
    Passed,
    /// A test was failed.
    Failed,
}

impl Verdict {
    /// `OK`, `REVIEW`, `REJECT`, `PASSED` or `FAILED`.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "OK",
            Verdict::Review => "REVIEW",
            Verdict::Reject => "REJECT",
            Verdict::Passed => "PASSED",
            Verdict::Failed => "FAILED",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Verdict::Ok | Verdict::Passed => "ok",
            Verdict::Review => "review",
            Verdict::Reject | Verdict::Failed => "reject",
        }
    }
}

/// A picture inside a page.
#[derive(Debug, Clone, PartialEq)]
pub enum Picture {
    /// A PNG file.
    Png(Vec<u8>),
    /// An SVG drawing made by this crate (it goes into the page as it is).
    Svg(String),
}

/// A picture and its caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The picture.
    pub picture: Picture,
    /// What is to be seen; also the text for readers who cannot see it.
    pub caption: String,
}

/// A key figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tile {
    /// What it is.
    pub label: String,
    /// The value with its unit.
    pub value: String,
    /// A remark below, may be empty.
    #[serde(default)]
    pub note: String,
    /// Colours the tile.
    #[serde(default)]
    pub verdict: Option<Verdict>,
}

/// A table of plain text for things that are no [`Table`] of scores.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grid {
    /// Heads of the columns.
    pub heads: Vec<String>,
    /// The rows; the first column is set to the left, the others to the right.
    pub rows: Vec<Vec<GridCell>>,
}

/// A cell of a [`Grid`].
#[derive(Debug, Clone, PartialEq)]
pub enum GridCell {
    /// Text, set to the right except in the first column.
    Text(String),
    /// Text set to the left: sentences.
    Words(String),
    /// A badge.
    Verdict(Verdict),
}

/// A page in the making: sections in the order of the calls.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    head: String,
    body: String,
    open: bool,
}

impl Page {
    /// A page with its heading, a line below it and the verdict.
    pub fn new(title: &str, subtitle: &str, verdict: Option<Verdict>) -> Self {
        let badge = verdict.map(badge).unwrap_or_default();
        let head = format!(
            "<header><div><h1>{}</h1><p class=\"subtitle\">{}</p></div>{badge}</header>\n",
            escape(title),
            escape(subtitle)
        );
        Self { title: escape(title), head, body: String::new(), open: false }
    }

    /// Starts a section.
    pub fn section(&mut self, heading: &str) {
        self.close_section();
        self.open = true;
        // Writing to a String cannot fail (here and below).
        let _ = writeln!(self.body, "<section><h2>{}</h2>", escape(heading));
    }

    /// A paragraph.
    pub fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
    }

    /// A bulleted list.
    pub fn list(&mut self, items: &[String]) {
        let items: String = items.iter().map(|i| format!("<li>{}</li>", escape(i))).collect();
        let _ = writeln!(self.body, "<ul>{items}</ul>");
    }

    /// Key figures side by side.
    pub fn tiles(&mut self, tiles: &[Tile]) {
        if tiles.is_empty() {
            return;
        }
        self.body += "<div class=\"tiles\">";
        for tile in tiles {
            let class = tile.verdict.map_or("", Verdict::class);
            let note = if tile.note.is_empty() {
                String::new()
            } else {
                format!("<span class=\"note\">{}</span>", escape(&tile.note))
            };
            let _ = write!(
                self.body,
                "<div class=\"tile {class}\"><span class=\"label\">{}</span><span class=\"value\">{}</span>{note}</div>",
                escape(&tile.label),
                escape(&tile.value)
            );
        }
        self.body += "</div>\n";
    }

    /// A table of scores: best means bold, daggers raised.
    pub fn table(&mut self, table: &Table) {
        let caption = if table.title.is_empty() {
            String::new()
        } else {
            format!("<caption>{}</caption>", escape(&table.title))
        };
        let heads = table.columns.iter().map(|c| format!("<th scope=\"col\">{}</th>", escape(c)));
        let _ = write!(
            self.body,
            "<div class=\"scroll\"><table>{caption}<thead><tr><th scope=\"col\">{}</th>{}</tr></thead><tbody>",
            escape(&table.row_head),
            heads.collect::<String>()
        );
        for row in &table.rows {
            let _ = write!(self.body, "<tr><th scope=\"row\">{}</th>", escape(&row.name));
            for cell in &row.cells {
                let text = match cell {
                    None => "<span class=\"absent\" title=\"not measured or absent\">–</span>".to_owned(),
                    Some(cell) => {
                        let (open, close) = if cell.best { ("<b>", "</b>") } else { ("", "") };
                        // The marks take a place of fixed width, so that decimal points stay below each other.
                        format!(
                            "{open}{}{close}<sup>{}</sup>",
                            cell.mean_std().replace('±', "&#8239;±&#8239;"),
                            cell.marks()
                        )
                    }
                };
                let _ = write!(self.body, "<td>{text}</td>");
            }
            self.body += "</tr>";
        }
        self.body += "</tbody></table></div>\n";
        for note in &table.notes {
            let _ = writeln!(self.body, "<p class=\"note\">{}</p>", escape(note));
        }
    }

    /// A table of plain text.
    pub fn grid(&mut self, grid: &Grid) {
        let in_words = |n: usize| {
            grid.rows.first().is_some_and(|row| !matches!(row.get(n), Some(GridCell::Text(_)) | None))
        };
        let head = |(n, text): (usize, &String)| {
            let class = if in_words(n) { " class=\"words\"" } else { "" };
            format!("<th scope=\"col\"{class}>{}</th>", escape(text))
        };
        let heads: String = grid.heads.iter().enumerate().map(head).collect();
        let _ = write!(self.body, "<div class=\"scroll\"><table><thead><tr>{heads}</tr></thead><tbody>");
        for row in &grid.rows {
            self.body += "<tr>";
            for (n, cell) in row.iter().enumerate() {
                let _ = match cell {
                    GridCell::Text(text) if n == 0 => {
                        write!(self.body, "<th scope=\"row\">{}</th>", escape(text))
                    }
                    GridCell::Text(text) => write!(self.body, "<td>{}</td>", escape(text)),
                    GridCell::Words(text) => write!(self.body, "<td class=\"words\">{}</td>", escape(text)),
                    GridCell::Verdict(verdict) => {
                        write!(self.body, "<td class=\"words\">{}</td>", badge(*verdict))
                    }
                };
            }
            self.body += "</tr>";
        }
        self.body += "</tbody></table></div>\n";
    }

    /// Names and values, one per line.
    pub fn facts(&mut self, facts: &[(String, String)]) {
        let rows =
            facts.iter().map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value)));
        let _ = writeln!(self.body, "<dl>{}</dl>", rows.collect::<String>());
    }

    /// Pictures with captions.
    pub fn figures(&mut self, figures: &[Figure]) {
        for figure in figures {
            let caption = escape(&figure.caption);
            let picture = match &figure.picture {
                Picture::Png(bytes) => {
                    format!(
                        "<img alt=\"{caption}\" src=\"data:image/png;base64,{}\">",
                        STANDARD.encode(bytes)
                    )
                }
                Picture::Svg(text) => text.clone(),
            };
            let below =
                if caption.is_empty() { caption } else { format!("<figcaption>{caption}</figcaption>") };
            let _ = writeln!(self.body, "<figure><div class=\"scroll\">{picture}</div>{below}</figure>");
        }
    }

    /// The finished page; `footer` says what made it.
    pub fn finish(mut self, footer: &str) -> String {
        self.close_section();
        let Self { title, head, body, .. } = self;
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{head}{body}\
             <footer>{}</footer>\n</main>\n</body>\n</html>\n",
            escape(footer)
        )
    }

    fn close_section(&mut self) {
        if self.open {
            self.body += "</section>\n";
            self.open = false;
        }
    }
}

fn badge(verdict: Verdict) -> String {
    format!("<span class=\"badge {}\">{}</span>", verdict.class(), verdict.word())
}

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_escaped() {
        let mut page = Page::new("<T>", "<S>", None);
        page.section("<H>");
        page.paragraph("<P>");
        page.list(&["<L>".into()]);
        page.facts(&[("<F>".into(), "<V>".into())]);
        page.tiles(&[Tile { label: "<X>".into(), value: "<Y>".into(), note: "<Z>".into(), verdict: None }]);
        page.grid(&Grid { heads: vec!["<G>".into()], rows: vec![vec![GridCell::Text("<C>".into())]] });
        page.figures(&[Figure { picture: Picture::Png(vec![1, 2, 3]), caption: "<K>\"".into() }]);
        let text = page.finish("<E>");
        for name in ["T", "S", "H", "P", "L", "F", "V", "X", "Y", "Z", "G", "C", "K", "E"] {
            let (raw, safe) = (format!("<{name}>"), format!("&lt;{name}&gt;"));
            assert!(!text.contains(&raw), "{raw}");
            assert!(text.contains(&safe), "{safe}");
        }
        assert!(text.contains("data:image/png;base64,AQID"));
    }

    #[test]
    fn sections_are_closed() {
        let mut page = Page::new("t", "s", Some(Verdict::Review));
        page.section("one");
        page.section("two");
        let text = page.finish("f");
        assert_eq!(text.matches("<section>").count(), text.matches("</section>").count());
        assert!(text.contains("<span class=\"badge review\">REVIEW</span>"));
    }
}
