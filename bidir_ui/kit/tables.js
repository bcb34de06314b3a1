// Every table that widgets.taken() holds: a click on a column name sorts it, and it goes along as CSV or Markdown.
// It reads what the page shows; no text of a table becomes markup or code.
export default function () {
  if (window.bidirTables) return;
  window.bidirTables = true;
  const said = cell => cell.innerText.replace(/\s+/g, ' ').trim();
  const plain = text => text.replace(/−/g, '-').replace(/(\d),(?=\d{3})/g, '$1');
  const isNumber = text => /^[+-]?\.?\d[\d.]*(?![\w.-])/.test(plain(text));  // and no date

  const sort = head => {
    const body = head.closest('table').tBodies[0], down = head.ariaSort === 'ascending';
    const text = row => said(row.cells[head.cellIndex]);
    const rows = [...body.rows], texts = rows.map(text).filter(cell => /\d/.test(cell));
    const numeric = texts.length > 0 && texts.every(isNumber);  // cells without a digit, such as "not run", go last
    const empty = cell => numeric ? !/\d/.test(cell) : ['', '–'].includes(cell);
    const place = row => row.matches('.total') ? 2 : empty(text(row)) ? 1 : 0;
    const value = numeric ? row => parseFloat(plain(text(row))) : text;
    const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, undefined, {numeric: true});
    rows.sort((a, b) => place(a) - place(b) || (down ? -1 : 1) * (place(a) ? 0 : compare(value(a), value(b))));
    body.append(...rows);
    for (const cell of head.parentNode.cells) cell.removeAttribute('aria-sort');
    head.ariaSort = down ? 'descending' : 'ascending';
  };

  const N = '([+-]?[\\d.]+)(?: ?%)?', INTERVAL = new RegExp(`^${N} [[(]${N}(?:, | to )${N}[)\\]]$`);
  const csvCell = text => {
    const number = plain(text).match(/^([+-]?\d+(\.\d+)?)( ?%)?$/);
    const value = number ? number[1] : /^[=+@-]/.test(text) ? `'${text}` : text;  // a spreadsheet runs no formula
    return /[",]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value;
  };
  const inert = text => text.replace(/[\\`*_[\]<>|#!~$&]/g, '\\$&').replace(/:\/\//g, '&#58;//').replace(/@/g, '&#64;');
  const line = cells => `| ${cells.join(' | ')} |`;
  const cells = table => [...table.rows].map(row => [...row.cells].map(said));
  const csv = table => {  // an interval has columns of its own
    const grid = cells(table), ends = text => plain(text).match(INTERVAL)?.slice(1);
    const wide = grid[0].map((_, column) => grid.some(row => ends(row[column])));
    const spread = (text, column, isHead) => !wide[column] ? [text]
      : isHead ? [text, `${text}, low`, `${text}, high`] : ends(text) ?? [text, '', ''];
    return grid.map((row, at) => row.flatMap((text, column) => spread(text, column, !at)).map(csvCell).join(','))
      .join('\r\n');
  };
  const markdown = table => {
    const [head, ...rows] = cells(table).map(row => line(row.map(inert)));
    return [head, line([...table.rows[0].cells].map(() => '---')), ...rows].join('\n');
  };
  const save = (text, name) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], {type: 'text/csv'}));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const copy = text => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const field = document.createElement('textarea');  // over http from another machine
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand('copy');
    field.remove();
  };

  document.addEventListener('click', event => {
    const head = event.target.closest('.b-taken thead th'), button = event.target.closest('.b-take button');
    if (head) sort(head);
    if (!button) return;
    const table = button.closest('.b-taken').querySelector('table');
    if (button.value) return save(csv(table), button.value);
    copy(markdown(table));
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Markdown' }, 1500);
  });
  document.addEventListener('keydown', event => {
    if (event.key === 'Enter' && event.target.matches('.b-taken thead th')) sort(event.target);
  });
}
