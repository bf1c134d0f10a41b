// The page of documentation: /openapi.json as tables.

const place = document.getElementById('routes');

function el(tag, properties = {}, ...children) {
  const e = Object.assign(document.createElement(tag), properties);
  e.append(...children);
  return e;
}

function resolve(doc, schema) {
  for (let i = 0; schema?.$ref && i < 8; i++) {
    schema = schema.$ref.split('/').slice(1).reduce((at, key) => at?.[key], doc);
  }
  return schema ?? {};
}

function kind(doc, schema) {
  if (schema?.$ref) return schema.$ref.split('/').pop();
  const s = resolve(doc, schema);
  const any = s.anyOf ?? s.oneOf;
  if (any) return any.map((x) => kind(doc, x)).filter((x) => x !== 'null').join(' or ');
  const types = [s.type ?? 'anything'].flat().filter((t) => t !== 'null');
  return types.map((t) => (t === 'array' ? `list of ${kind(doc, s.items ?? {})}` : t)).join(' or ');
}

function table(doc, schema) {
  const s = resolve(doc, schema);
  const rows = Object.entries(s.properties ?? {}).map(([name, p]) => {
    const needed = s.required?.includes(name) ? ' (needed)' : '';
    return el('tr', {}, el('td', {}, el('code', { textContent: name })),
      el('td', { className: 'type', textContent: kind(doc, p) + needed }),
      el('td', { textContent: p.description ?? resolve(doc, p).description ?? '' }));
  });
  const head = el('tr', {}, ...['Field', 'Type', ''].map((t) => el('th', { textContent: t, scope: 'col' })));
  return el('table', {}, el('thead', {}, head), el('tbody', {}, ...rows));
}

function route(doc, path, method, operation) {
  const body = el('div', { className: 'body' });
  for (const p of operation.parameters ?? []) {
    body.append(el('p', {}, el('code', { textContent: p.name }), ` in the ${p.in}${p.required ? ' (needed)' : ''}`));
  }
  const schema = operation.requestBody?.content?.['application/json']?.schema;
  if (schema) body.append(table(doc, schema));
  else if (operation.requestBody) body.append(el('p', { textContent: 'The body is a file.' }));
  return el('details', {}, el('summary', {}, el('b', { textContent: method.toUpperCase() }),
    el('code', { textContent: path }), el('span', { textContent: operation.summary ?? '' })), body);
}

async function show() {
  const key = sessionStorage.getItem('hawfinch.key') ?? localStorage.getItem('hawfinch.key');
  const answer = await fetch('/openapi.json', key ? { headers: { authorization: `Bearer ${key}` } } : {});
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const doc = await answer.json();
  const all = Object.entries(doc.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => route(doc, path, method, operation)));
  place.replaceChildren(el('p', { textContent: doc.info.description }), ...all);
}

show().catch((e) => place.replaceChildren(el('p', { textContent: `The description could not be read: ${e.message}` })))
  .finally(() => place.removeAttribute('aria-busy'));
