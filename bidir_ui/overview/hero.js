// The item on the Overview: moving a dial looks an answer up in `scores[sink][A][strength][choice]`
// (hundredths of a nat behind the likeliest choice). Texts go in as text, never as markup.

const SAID = {
  broken: '▼ Now wrong.',
  fixed: '▲ Now right.',
  other: '◇ Still wrong, another choice.',
  right: '● Right, no flip.',
  wrong: '○ Wrong, no flip.',
};

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function control(kind, name, text) {
  const label = element('label', 'dial ' + kind);
  const input = element('input');
  const value = element('output');
  input.type = kind === 'slider' ? 'range' : 'checkbox';
  if (kind === 'switch') input.setAttribute('role', 'switch');
  input.name = name;
  input.min = 0;
  label.append(element('span', 'name', text), input, value);
  return { label, input, value };
}

const likeliest = scores => scores.indexOf(Math.max(...scores));

function shares(scores) {
  const weights = scores.map(score => Math.exp(score / 100));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map(weight => weight / sum);
}

// Who sees whom in a prompt of so many tokens: a row a token, what lies ahead of it in blue.
function drawMask(canvas, item, state, strength) {
  const n = Math.min(item.n_prefix, 40), size = 160 / n, pen = canvas.getContext('2d');
  pen.clearRect(0, 0, 160, 160);
  for (let row = 0; row < n; row++) {
    pen.globalAlpha = 1;
    pen.fillStyle = '#7f7f7f';
    pen.fillRect(0, row * size, (row + 1) * size, size);
    // A little look-ahead already counts, so the tint grows with the strength's step, not its value.
    pen.globalAlpha = state.sink && row === 0 ? 0 : strength;
    pen.fillStyle = '#0072b2';
    pen.fillRect((row + 1) * size, row * size, 160 - (row + 1) * size, size);
  }
}

export default function (component) {
  const { data, parentElement } = component;
  const { items, strengths } = data;
  const last = strengths.length - 1;
  const start = { item: 0, strength: last, sink: 0, layers: 0, repaired: 0 };
  const order = Object.keys(start);
  const read = () => {
    const given = (new URL(location).searchParams.get('try') || '').split('.').map(Number);
    const state = { ...start };
    if (given.length === order.length && given.every(Number.isInteger)) {
      order.forEach((name, i) => { state[name] = Math.max(0, given[i]); });
    }
    state.item = Math.min(state.item, items.length - 1);
    state.strength = Math.min(state.strength, last);
    state.layers = Math.min(state.layers, items[state.item].n_layers);
    return { ...state, sink: state.sink ? 1 : 0, repaired: state.repaired ? 1 : 0 };
  };
  let state = read();

  const root = element('div', 'b b-hero');
  const left = element('div', 'left'), right = element('div', 'right');
  const which = element('div', 'which'), text = element('div', 'text');
  const choices = element('div', 'choices'), said = element('div', 'said');
  said.setAttribute('aria-live', 'polite');
  const nav = element('div', 'nav');
  const next = element('button', 'next', 'Next item'), open = element('a', 'open', 'Open');
  next.type = 'button';
  open.target = '_self';
  nav.append(next, open);
  left.append(which, text, choices, said, nav);

  const dials = {
    strength: control('slider', 'strength', 'Look-ahead'),
    sink: control('switch', 'sink', 'First token causal'),
    layers: control('slider', 'layers', 'Causal layers'),
    repaired: control('switch', 'repaired', 'Repaired'),
  };
  dials.strength.input.max = last;
  const mask = element('canvas'), stack = element('div', 'stack');
  mask.width = mask.height = 160;
  mask.setAttribute('role', 'img');
  stack.setAttribute('role', 'img');
  const pictures = element('div', 'pictures');
  pictures.append(mask, stack);
  right.append(...Object.values(dials).map(dial => dial.label), pictures);
  root.append(left, right);
  parentElement.replaceChildren(root);

  function show(item) {
    which.textContent = item.title;
    open.setAttribute('aria-label', 'Open ' + item.item);
    text.textContent = item.text;
    choices.replaceChildren(...item.choices.map((choice, i) => {
      const row = element('div', 'choice' + (i === item.gold ? ' gold' : ''));
      const track = element('span', 'track');
      track.append(element('span', 'fill'));
      row.append(element('span', 'name', choice), track, element('span', 'share'));
      return row;
    }));
    stack.replaceChildren(...Array.from({ length: item.n_layers }, () => element('span')));
    dials.layers.input.max = item.n_layers;
    dials.repaired.label.hidden = !item.repaired;
    open.href = item.href;
  }

  function update() {
    const item = items[state.item];
    const repaired = Boolean(state.repaired && item.repaired);
    // The repaired model's scores were recorded with the whole prompt looking ahead.
    const now = repaired ? { ...state, strength: last, sink: 0, layers: 0 } : state;
    const scores = repaired ? item.repaired : item.scores[now.sink][now.layers][now.strength];
    const before = likeliest(item.scores[0][0][0]), answer = likeliest(scores);
    shares(scores).forEach((share, i) => {
      const row = choices.children[i];
      row.classList.toggle('picked', i === answer);
      row.querySelector('.fill').style.width = 100 * share + '%';
      row.querySelector('.share').textContent = i === answer ? Math.round(100 * share) + '\u202f%' : '';
    });
    const isRight = answer === item.gold, wasRight = before === item.gold;
    const flip = isRight === wasRight ? (isRight ? 'right' : answer === before ? 'wrong' : 'other')
      : isRight ? 'fixed' : 'broken';
    said.textContent = SAID[flip];
    said.dataset.flip = flip;
    for (const [name, { input, value }] of Object.entries(dials)) {
      const number = name === 'repaired' ? Number(repaired) : now[name];
      if (input.type === 'checkbox') input.checked = Boolean(number); else input.value = number;
      input.disabled = repaired && name !== 'repaired';
      value.textContent = name === 'strength' ? 'λ=' + strengths[number]
        : name === 'layers' ? String(number) : '';
      if (name === 'strength') input.setAttribute('aria-valuetext', 'lambda ' + strengths[number]);
    }
    drawMask(mask, item, now, now.layers === item.n_layers ? 0 : now.strength / last);
    mask.title = `Who sees whom: look-ahead at lambda ${strengths[now.strength]}`
      + (now.sink ? ', not by the first token' : '');
    [...stack.children].forEach((layer, i) => layer.classList.toggle('ahead', i >= now.layers && now.strength > 0));
    stack.title = `Layers that look ahead: ${item.n_layers - now.layers} of ${item.n_layers}`;
  }

  function remember() {
    const url = new URL(location);
    url.searchParams.set('try', order.map(name => state[name]).join('.'));
    history.replaceState(history.state, '', url);
  }

  for (const [name, { input }] of Object.entries(dials)) {
    input.addEventListener('input', () => {
      state[name] = input.type === 'checkbox' ? Number(input.checked) : Number(input.value);
      update();
    });
    input.addEventListener('change', remember);
  }
  next.addEventListener('click', () => {
    state = { ...start, item: (state.item + 1) % items.length };
    show(items[state.item]);
    update();
    remember();
  });
  show(items[state.item]);
  update();
}
