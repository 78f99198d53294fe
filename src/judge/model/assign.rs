//! Which part stands for which line of the bill: the assignment with the least sum of differences, so that one wrong disk is one
//! difference and not twelve.

/// Nothing that is there differs as much as what is missing.
pub const MISSING: u32 = 1 << 16;

/// For each wanted position the part that stands for it (`None`: it is missing), and the parts that are left over. `cost` of a
/// position and a part is to be below [`MISSING`].
pub fn assign<P>(
    wanted: usize,
    parts: &[P],
    cost: impl Fn(usize, &P) -> u32,
) -> (Vec<Option<usize>>, impl Iterator<Item = usize>) {
    let costs: Vec<Vec<i64>> = (0..wanted)
        .map(|row| {
            let there = parts.iter().map(|part| i64::from(cost(row, part).min(MISSING - 1)));
            there.chain(std::iter::repeat_n(i64::from(MISSING), wanted)).collect()
        })
        .collect();
    let found: Vec<Option<usize>> = cheapest(&costs, parts.len() + wanted)
        .into_iter()
        .map(|column| Some(column).filter(|c| *c < parts.len()))
        .collect();
    let mut taken = vec![false; parts.len()];
    found.iter().flatten().for_each(|part| taken[*part] = true);
    (found, taken.into_iter().enumerate().filter_map(|(part, taken)| (!taken).then_some(part)))
}

/// The Hungarian method with potentials (Kuhn 1955, in the form of Jonker and Volgenant 1987): rows² × columns steps. Each row has
/// `columns` costs, and there are at least as many columns as rows. Gives the column of each row.
#[allow(clippy::needless_range_loop, reason = "four tables are walked together")]
fn cheapest(costs: &[Vec<i64>], columns: usize) -> Vec<usize> {
    // Column 0 and row 0 stand for "none"; the others are counted from 1.
    let (mut of_row, mut of_column) = (vec![0i64; costs.len() + 1], vec![0i64; columns + 1]);
    let mut holder = vec![0usize; columns + 1];
    for row in 1..=costs.len() {
        holder[0] = row;
        let mut at = 0;
        let (mut least, mut from) = (vec![i64::MAX; columns + 1], vec![0usize; columns + 1]);
        let mut seen = vec![false; columns + 1];
        // The shortest augmenting path from this row to a free column.
        while holder[at] != 0 {
            seen[at] = true;
            let (current, mut delta, mut next) = (holder[at], i64::MAX, 0);
            for column in 1..=columns {
                if seen[column] {
                    continue;
                }
                let reduced = costs[current - 1][column - 1] - of_row[current] - of_column[column];
                if reduced < least[column] {
                    (least[column], from[column]) = (reduced, at);
                }
                if least[column] < delta {
                    (delta, next) = (least[column], column);
                }
            }
            for column in 0..=columns {
                if seen[column] {
                    of_row[holder[column]] += delta;
                    of_column[column] -= delta;
                } else if column > 0 {
                    least[column] -= delta;
                }
            }
            at = next;
        }
        while at != 0 {
            holder[at] = holder[from[at]];
            at = from[at];
        }
    }
    let mut columns_of = vec![0; costs.len()];
    for (column, row) in holder.iter().enumerate().skip(1).filter(|(_, row)| **row > 0) {
        columns_of[row - 1] = column - 1;
    }
    columns_of
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By trying all.
    fn least(costs: &[Vec<i64>], taken: &mut Vec<usize>) -> i64 {
        let row = taken.len();
        let Some(cells) = costs.get(row) else { return 0 };
        let mut best = i64::MAX;
        for (column, cost) in cells.iter().enumerate() {
            if !taken.contains(&column) {
                taken.push(column);
                best = best.min(cost + least(costs, taken));
                taken.pop();
            }
        }
        best
    }

    proptest! {
        #[test]
        fn no_other_assignment_costs_less(costs in prop::collection::vec(prop::collection::vec(0i64..9, 5), 1..5)) {
            let columns = cheapest(&costs, 5);
            let sum: i64 = columns.iter().zip(&costs).map(|(column, row)| row[*column]).sum();
            prop_assert_eq!(sum, least(&costs, &mut Vec::new()));
            let different: std::collections::HashSet<_> = columns.iter().collect();
            prop_assert_eq!(different.len(), costs.len());
        }
    }

    #[test]
    fn what_is_missing_and_what_is_left_over() {
        let (found, left) = assign(2, &['a', 'x', 'y'], |row, part| u32::from(*part != ['a', 'b'][row]));
        assert_eq!((found, left.count()), (vec![Some(0), Some(1)], 1));
        let (found, left) = assign(2, &['b'], |row, part| u32::from(*part != ['a', 'b'][row]));
        assert_eq!((found, left.count()), (vec![None, Some(0)], 0));
        let (found, left) = assign(0, &['b'], |_, _| 0);
        assert_eq!((found.len(), left.count()), (0, 1));
    }
}
