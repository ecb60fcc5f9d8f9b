//! Lines on a terminal that is ours for a while.

use std::io::{self, Stdout, Write as _};

use crossterm::style::{ContentStyle, PrintStyledContent, StyledContent, Stylize as _};
use crossterm::terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, execute, queue};
use unicode_width::UnicodeWidthChar as _;

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// A line of pieces, each in its own style.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line(pub Vec<StyledContent<String>>);

impl Line {
    /// One piece in the terminal's own style.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::styled(text, ContentStyle::new())
    }

    /// One piece.
    pub fn styled(text: impl Into<String>, style: ContentStyle) -> Self {
        Self(vec![StyledContent::new(style, text.into())])
    }

    /// Adds a piece.
    pub fn push(&mut self, text: impl Into<String>, style: ContentStyle) {
        self.0.push(StyledContent::new(style, text.into()));
    }

    /// With colours of text and ground exchanged, as wide as the terminal.
    pub fn reversed(mut self, width: usize) -> Self {
        let used = columns(&self.text());
        self.push(" ".repeat(width.saturating_sub(used)), ContentStyle::new());
        Self(self.0.into_iter().map(|piece| piece.reverse()).collect())
    }

    /// Without styles.
    pub fn text(&self) -> String {
        self.0.iter().map(|piece| piece.content().as_str()).collect()
    }

    /// No wider than that.
    fn cut(&self, width: usize) -> Self {
        let mut left = width;
        let piece = |piece: &StyledContent<String>| {
            let text = head(piece.content(), left);
            // Nothing comes after what was cut, though a narrow character would still fit.
            left = if text.len() < piece.content().len() { 0 } else { left - columns(text) };
            StyledContent::new(*piece.style(), text.to_owned())
        };
        Self(self.0.iter().map(piece).collect())
    }
}

/// How many columns a text takes.
pub fn columns(text: &str) -> usize {
    text.chars().filter_map(|c| c.width()).sum()
}

/// As much of a text as fits into that many columns.
pub fn head(text: &str, width: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, c)| {
        used += c.width().unwrap_or(0);
        used > width
    });
    end.map_or(text, |(at, _)| &text[..at])
}

/// The terminal. Dropping it gives it back as it was.
pub struct Screen {
    out: Stdout,
    size: Size,
    shown: Vec<Line>,
}

impl Screen {
    /// Takes the terminal.
    pub fn open() -> io::Result<Self> {
        give_back_at_panic();
        terminal::enable_raw_mode()?;
        let mut screen = Self { out: io::stdout(), size: Size { width: 0, height: 0 }, shown: Vec::new() };
        execute!(screen.out, EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Shows what is drawn for the terminal's size: the lines that changed.
    pub fn show(&mut self, draw: impl FnOnce(Size) -> Vec<Line>) -> io::Result<()> {
        let (width, height) = terminal::size()?;
        let size = Size { width: width.into(), height: height.into() };
        if size != self.size {
            self.size = size;
            self.shown.clear();
            queue!(self.out, Clear(ClearType::All))?;
        }
        let lines: Vec<Line> = draw(size).iter().take(size.height).map(|line| line.cut(size.width)).collect();
        for (row, line) in (0..height).zip(&lines) {
            if self.shown.get(usize::from(row)) == Some(line) {
                continue;
            }
            queue!(self.out, cursor::MoveTo(0, row))?;
            for piece in &line.0 {
                queue!(self.out, PrintStyledContent(piece.clone()))?;
            }
            if columns(&line.text()) < size.width {
                queue!(self.out, Clear(ClearType::UntilNewLine))?;
            }
        }
        self.shown = lines;
        self.out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// A terminal that is gone needs nothing any more.
fn give_back() {
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
}

/// What a panic says is to be read afterwards.
fn give_back_at_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        give_back();
        before(info);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_at_the_width_of_what_is_seen() {
        let mut line = Line::plain("ab日本");
        line.push("xyz", ContentStyle::new().bold());
        assert_eq!(columns(&line.text()), 9);
        assert_eq!(line.cut(5).text(), "ab日", "half a character is none");
        assert_eq!(line.cut(7).text(), "ab日本x");
        assert_eq!(line.cut(99), line);
        assert_eq!(line.reversed(12).text(), "ab日本xyz   ");
    }
}
