//! Rounds in turn, and the table of what came out.

use super::{Result, interrupt};

/// One who is measured.
pub trait Contender {
    /// One bounded measurement.
    fn round(&mut self) -> Result<Sample>;
}

/// What one round gave.
pub struct Sample {
    /// The figure that is compared.
    pub figure: f64,
    /// One for each of the comparison's further columns.
    pub further: Vec<f64>,
}

impl Sample {
    /// A sample for a comparison without further columns.
    pub fn of(figure: f64) -> Sample {
        Sample { figure, further: Vec::new() }
    }
}

/// A further column: what its rounds come to.
#[derive(Clone, Copy)]
pub enum Column {
    Median(&'static str),
    Sum(&'static str),
    Most(&'static str),
}

/// What is asked of us beside a contender.
#[derive(Clone, Copy)]
pub enum Aim {
    None,
    /// Ours divided by it is at least this.
    Ratio(f64),
    /// The same, but only beside the contender with the greatest figure of those with this aim.
    RatioToBest(f64),
    /// The figure itself is at least this.
    AtLeast(f64),
    /// The figure itself is at most this.
    AtMost(f64),
    /// The figure is at most this in each round: one loss is a loss, whatever the median.
    NeverOver(f64),
}

/// A table in the making.
pub struct Comparison<'a> {
    title: String,
    columns: Vec<Column>,
    lanes: Vec<Lane<'a>>,
}

struct Lane<'a> {
    name: String,
    aim: Aim,
    ours: bool,
    contender: Result<Box<dyn Contender + 'a>>,
    samples: Vec<Sample>,
}

impl<'a> Comparison<'a> {
    /// The title names what is counted, and its unit.
    pub fn new(title: impl Into<String>, columns: &[Column]) -> Comparison<'a> {
        Comparison { title: title.into(), columns: columns.to_vec(), lanes: Vec::new() }
    }

    /// The one that the others are compared with.
    pub fn ours(&mut self, name: &str, aim: Aim, contender: Result<Box<dyn Contender + 'a>>) {
        self.add(name, aim, contender, true);
    }

    /// A limit or a peer; an error (such as "not installed") stands in its row instead of figures.
    pub fn beside(&mut self, name: &str, aim: Aim, contender: Result<Box<dyn Contender + 'a>>) {
        self.add(name, aim, contender, false);
    }

    fn add(&mut self, name: &str, aim: Aim, contender: Result<Box<dyn Contender + 'a>>, ours: bool) {
        self.lanes.push(Lane { name: name.to_owned(), aim, ours, contender, samples: Vec::new() });
    }

    /// Measures all of them in turn, round after round. Whoever fails is left out from then on.
    ///
    /// # Errors
    /// Only an interrupt ends a comparison.
    pub fn run(&mut self, rounds: usize) -> Result<()> {
        for _ in 0..rounds {
            for lane in &mut self.lanes {
                interrupt::check()?;
                let Ok(contender) = &mut lane.contender else {
                    continue;
                };
                match contender.round() {
                    Ok(sample) => lane.samples.push(sample),
                    Err(error) => lane.contender = Err(error),
                }
            }
        }
        interrupt::check()
    }

    /// The median figure of a contender by name, if it was measured.
    pub fn median_of(&self, name: &str) -> Option<f64> {
        self.lanes.iter().find(|lane| lane.name == name)?.median()
    }

    /// Prints the table as Markdown.
    pub fn print(&self) {
        println!("{}\n", self.title);
        let mut head = vec!["contender".to_owned(), "median".into(), "min..max".into()];
        head.extend(self.columns.iter().map(|column| match column {
            Column::Median(name) | Column::Sum(name) | Column::Most(name) => (*name).to_owned(),
        }));
        head.extend(["ours ÷ it".into(), "aim".into(), String::new()]);
        let rows: Vec<Vec<String>> = self.lanes.iter().map(|lane| self.row(lane)).collect();
        print_table(&head, &rows);
        println!();
    }

    fn row(&self, lane: &Lane) -> Vec<String> {
        let median = match (&lane.contender, lane.median()) {
            (Ok(_), Some(median)) => median,
            (Err(error), _) => return vec![lane.name.clone(), error.to_string()],
            (Ok(_), None) => return vec![lane.name.clone(), "not measured".into()],
        };
        let mut cells = vec![lane.name.clone(), figure(median), lane.span()];
        cells.extend(self.columns.iter().enumerate().map(|(at, column)| lane.further(at, *column)));
        // Of a count that may be zero there is no ratio.
        let ratio = self.our_median().filter(|_| !lane.ours && median != 0.0).map(|ours| ours / median);
        cells.push(ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}")));
        cells.extend(self.verdict(lane, median, ratio));
        cells
    }

    /// The aim in words, and whether it was reached where that can be said.
    fn verdict(&self, lane: &Lane, median: f64, ratio: Option<f64>) -> [String; 2] {
        let (aim, reached) = match lane.aim {
            Aim::None => return Default::default(),
            Aim::RatioToBest(_) if self.best_with_that_aim() != Some(median) => {
                return Default::default();
            }
            Aim::Ratio(least) | Aim::RatioToBest(least) => (format!("≥ {least:.2}"), ratio.map(|ratio| ratio >= least)),
            Aim::AtLeast(least) => (format!("≥ {}", figure(least)), Some(median >= least)),
            Aim::AtMost(most) => (format!("≤ {}", figure(most)), Some(median <= most)),
            Aim::NeverOver(most) => {
                (format!("never > {}", figure(most)), Some(lane.figures().iter().all(|&one| one <= most)))
            }
        };
        let word = reached.map_or("", |reached| if reached { "reached" } else { "missed" });
        [aim, word.to_owned()]
    }

    fn our_median(&self) -> Option<f64> {
        self.lanes.iter().find(|lane| lane.ours)?.median()
    }

    fn best_with_that_aim(&self) -> Option<f64> {
        let rivals = self.lanes.iter().filter(|lane| matches!(lane.aim, Aim::RatioToBest(_)));
        rivals.filter_map(Lane::median).max_by(f64::total_cmp)
    }
}

impl Lane<'_> {
    fn figures(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.figure).collect()
    }

    /// None once it failed: half a series is not compared with whole ones.
    fn median(&self) -> Option<f64> {
        self.contender.as_ref().ok().and_then(|_| median(self.figures()))
    }

    fn span(&self) -> String {
        let figures = self.figures();
        let least = figures.iter().copied().min_by(f64::total_cmp);
        let most = figures.iter().copied().max_by(f64::total_cmp);
        format!("{}..{}", figure(least.unwrap_or_default()), figure(most.unwrap_or_default()))
    }

    fn further(&self, at: usize, column: Column) -> String {
        let values = self.samples.iter().filter_map(|sample| sample.further.get(at).copied());
        figure(match column {
            Column::Median(_) => median(values.collect()).unwrap_or_default(),
            Column::Sum(_) => values.sum(),
            Column::Most(_) => values.max_by(f64::total_cmp).unwrap_or_default(),
        })
    }
}

/// The middle of the values, or the mean of the middle two.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// A figure as a table shows it: three digits that mean something, thousands set apart.
pub fn figure(value: f64) -> String {
    if value.abs() < 10.0 && value.fract() != 0.0 {
        return format!("{value:.2}");
    }
    if value.abs() < 100.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    let mut grouped = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Markdown, padded so that it reads as well in a terminal. The last cell of a short row (an error in
/// words) may be wider than its column.
fn print_table(head: &[String], rows: &[Vec<String>]) {
    let width_of = |column: usize| {
        let cells = rows.iter().filter(|row| row.len() == head.len() || column == 0);
        let cells = cells.map(|row| row[column].chars().count());
        cells.max().unwrap_or_default().max(head[column].chars().count())
    };
    let widths: Vec<usize> = (0..head.len()).map(width_of).collect();
    let line = |cells: &[String]| {
        let padded = widths.iter().zip(cells).map(|(width, cell)| format!("{cell:<width$}"));
        println!("| {} |", padded.collect::<Vec<_>>().join(" | "));
    };
    line(head);
    line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}
