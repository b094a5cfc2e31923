// The menu of a small screen, and a search that works from files: its index is a script, read when first needed.
const root = document.currentScript.dataset.root;
const [menu, button, box, query, found] = ['menu', 'menu-button', 'search', 'query', 'found'].map((id) => document.getElementById(`site-${id}`));

function showMenu(open) {
  menu.classList.toggle('closed', !open);
  menu.classList.toggle('open', open);
  button.setAttribute('aria-expanded', String(open));
}
button.hidden = box.hidden = false;
showMenu(false);
button.addEventListener('click', () => showMenu(menu.classList.contains('closed')));
document.querySelector('#site-menu [aria-current]')?.scrollIntoView({ block: 'nearest' });

let index;
function load() {
  index ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = `${root}/search.js`;
    script.onload = () => resolve(window.SEARCH);
    script.onerror = reject;
    document.head.append(script);
  });
  return index;
}

// A word in a heading counts more than one in the text, and every word has to be there.
function score([, page, heading, text], words) {
  let total = 0;
  for (const word of words) {
    const title = `${page} ${heading}`.toLowerCase();
    const points = (title.includes(word) ? 10 : 0) + (title.startsWith(word) ? 5 : 0) + (text.toLowerCase().includes(word) ? 1 : 0);
    if (!points) return 0;
    total += points;
  }
  return total;
}

function entry([target, page, heading, text], words) {
  const [item, link, small] = ['li', 'a', 'small'].map((tag) => document.createElement(tag));
  const at = Math.max(0, text.toLowerCase().indexOf(words[0]) - 40);
  link.href = `${root}/${target}`;
  small.textContent = (at ? '… ' : '') + text.slice(at, at + 140);
  link.append(heading === page ? page : `${page}: ${heading}`, small);
  item.append(link);
  return item;
}

function close() {
  found.hidden = true;
  query.setAttribute('aria-expanded', 'false');
}

async function search() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return close();
  const all = await load();
  const best = all.map((e) => [score(e, words), e]).filter(([points]) => points).sort((a, b) => b[0] - a[0]).slice(0, 12);
  found.replaceChildren(...best.map(([, e]) => entry(e, words)));
  if (!best.length) found.append(Object.assign(document.createElement('li'), { textContent: 'Nothing found' }));
  found.hidden = false;
  query.setAttribute('aria-expanded', 'true');
}

menu.addEventListener('click', (event) => event.target.closest('a') && showMenu(false));
query.addEventListener('focus', load);
query.addEventListener('input', search);
document.addEventListener('click', (event) => box.contains(event.target) || close());
found.addEventListener('click', close);
document.addEventListener('keydown', (event) => {
  const links = [...found.querySelectorAll('a')];
  const at = links.indexOf(document.activeElement);
  if (event.key === 'Escape') {
    close();
    if (menu.classList.contains('open')) showMenu(false), button.focus();
  }
  else if (event.key === '/' && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) query.focus();
  else if (event.key === 'ArrowDown' && box.contains(document.activeElement)) (links[at + 1] ?? links[0])?.focus();
  else if (event.key === 'ArrowUp' && at >= 0) (links[at - 1] ?? query).focus();
  else return;
  event.preventDefault();
});
