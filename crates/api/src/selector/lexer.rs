//! The words of the label selector grammar.

/// What a word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// Not a word of the grammar.
    Error,
    /// The end of the text.
    End,
    /// `)`
    Close,
    /// `,`
    Comma,
    /// `!`
    Not,
    /// `==`
    DoubleEquals,
    /// `=`
    Equals,
    /// `>`
    Greater,
    /// A key or value.
    Identifier,
    /// `in`
    In,
    /// `<`
    Less,
    /// `!=`
    NotEquals,
    /// `notin`
    NotIn,
    /// `(`
    Open,
}

/// Splits a text into words; the last one is always [`Token::End`].
pub(super) fn scan(text: &str) -> Vec<(Token, String)> {
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    let mut words = Vec::new();
    loop {
        while chars.get(at).is_some_and(|c| is_space(*c)) {
            at += 1;
        }
        match chars.get(at) {
            None => {
                words.push((Token::End, String::new()));
                return words;
            }
            Some(c) if is_special(*c) => words.push(symbol(&chars, &mut at)),
            Some(_) => words.push(identifier(&chars, &mut at)),
        }
    }
}

/// The longest run of symbols that is a word.
fn symbol(chars: &[char], at: &mut usize) -> (Token, String) {
    let mut read = String::new();
    let mut found = None;
    while let Some(c) = chars.get(*at).copied().filter(|c| is_special(*c)) {
        read.push(c);
        match of_symbol(&read) {
            Some(token) => found = Some((token, read.clone())),
            None if found.is_some() => break,
            None => {}
        }
        *at += 1;
    }
    found.unwrap_or_else(|| (Token::Error, format!("error expected: keyword found '{read}'")))
}

/// A key, a value or a keyword.
fn identifier(chars: &[char], at: &mut usize) -> (Token, String) {
    let start = *at;
    while chars.get(*at).is_some_and(|c| !is_special(*c) && !is_space(*c)) {
        *at += 1;
    }
    let word: String = chars[start..*at].iter().collect();
    let token = match word.as_str() {
        "in" => Token::In,
        "notin" => Token::NotIn,
        _ => Token::Identifier,
    };
    (token, word)
}

/// The word that a run of symbols is.
fn of_symbol(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "(" => Token::Open,
        _ => return None,
    })
}

/// Whether a character separates words.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Whether a character belongs to a symbol.
fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}
