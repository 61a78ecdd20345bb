// The token microscope. Data: see microscope.py.
(() => {
  const root = document.documentElement, $ = (id) => document.getElementById(id);
  $("theme").onclick = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    paint();
  };
  const data = JSON.parse($("data").textContent);
  if (!data.length) { $("microscope").textContent = "No completions were logged (--log-completions of train.py)."; return; }
  const state = { run: 0, colour: "entropy", filter: "all", fixed: false, at: 0 };
  const tip = $("tip"), slider = $("slider"), cards = $("cards");
  let frames = [], shown = [], timer = null;

  const show = (x, d = 3) => (x == null ? "–" : (x < 0 ? "−" : "") + Math.abs(x).toFixed(d));
  const visible = (s) => s.replace(/\n/g, "⏎").replace(/^ /, "␣") || "∎";
  const css = (name, a) => `rgba(${getComputedStyle(root).getPropertyValue("--" + name).trim()}, ${a})`;

  // [value of a token] -> colour; each measure has a scale that fits its usual range
  const COLOURS = {
    entropy: { title: "entropy", of: (c, i) => c.H[i], ends: ["0", "2 nats and more"], paint: (x) => css("heat", 0.85 * Math.min(1, Math.sqrt(x / 2))) },
    logp: { title: "log-prob", of: (c, i) => c.L[i], ends: ["0 (certain)", "−4 and less"], paint: (x) => css("heat", 0.85 * Math.min(1, Math.sqrt(-x / 4))) },
    advantage: { title: "advantage", of: (c, i) => c.A && c.A[i], ends: ["−2.5 (less likely)", "+2.5 (more likely)"], both: true,
      paint: (x) => css(x > 0 ? "good" : "heat", 0.8 * Math.min(1, Math.abs(x) / 2.5)) },
    change: { title: "probability change", of: (c, i) => c.D && c.D[i], ends: ["−0.1 and less", "+0.1 and more"], both: true,
      paint: (x) => css(x > 0 ? "good" : "heat", 0.9 * Math.min(1, Math.sqrt(Math.abs(x) / 0.1))) },
  };

  function press(group, value) {
    for (const b of $(group).querySelectorAll("button")) b.setAttribute("aria-pressed", String(b.dataset.v === String(value)));
  }

  function choices() { // which frames the slider steps through
    const run = data[state.run];
    if (state.fixed) return run.fixed;
    return state.colour === "change" ? run.steps.filter((f) => f.replayed) : run.steps;
  }

  function rebuild() {
    const run = data[state.run], wanted = frames.length ? frames[state.at].step : null;
    $("fixed").disabled = !run.fixed.length;
    const canChange = !state.fixed && run.steps.some((f) => f.replayed);
    for (const b of $("colours").querySelectorAll("button")) b.disabled = b.dataset.v === "change" ? !canChange : b.dataset.v === "advantage" && state.fixed;
    if (state.fixed && (state.colour === "change" || state.colour === "advantage")) state.colour = "entropy";
    if (state.colour === "change" && !canChange) state.colour = "entropy";
    if (state.fixed && !run.fixed.length) state.fixed = false;
    frames = choices();
    slider.max = frames.length - 1;
    if (wanted != null) state.at = frames.reduce((best, f, i) => (Math.abs(f.step - wanted) < Math.abs(frames[best].step - wanted) ? i : best), 0);
    state.at = Math.min(state.at, frames.length - 1);
    press("runs", state.run); press("colours", state.colour); press("filters", state.filter); press("modes", state.fixed ? "fixed" : "steps");
    const rail = $("rail"), last = frames.length - 1 || 1;
    rail.replaceChildren();
    frames.forEach((f, i) => {
      if (f.replayed) { const dot = document.createElement("i"); dot.style.left = (100 * i) / last + "%"; dot.title = "replayed step"; rail.append(dot); }
    });
    const at = frames.findIndex((f) => run.plateau && f.step >= run.plateau);
    if (at > 0) {
      const mark = document.createElement("b"); mark.textContent = "plateau"; mark.style.left = (100 * at) / last + "%";
      if (at / last > 0.8) mark.className = "left";
      rail.append(mark);
    }
    draw();
  }

  function draw() {
    const run = data[state.run], frame = frames[state.at], measure = COLOURS[state.colour];
    slider.value = state.at;
    const stage = run.plateau && frame.step >= run.plateau ? "plateau" : "rising stage";
    $("where").textContent = state.fixed ? `model after step ${frame.step}` : `step ${frame.step}, ${stage}`;
    slider.setAttribute("aria-valuetext", $("where").textContent);
    $("scale").style.background = measure.both ? `linear-gradient(90deg, ${css("heat", 0.8)}, transparent, ${css("good", 0.8)})` : `linear-gradient(90deg, transparent, ${css("heat", 0.85)})`;
    $("low").textContent = measure.ends[0]; $("high").textContent = measure.ends[1];
    shown = frame.items.filter((c) => state.filter === "all" || (state.filter === "defect" ? c.bad.length : c.ok === (state.filter === "right")));
    const parts = shown.map((c, n) => {
      const card = document.createElement("article");
      card.className = "card " + (c.ok ? "right" : "wrong");
      const head = document.createElement("div"); head.className = "head";
      const verdict = document.createElement("b"); verdict.textContent = c.ok ? "right" : "wrong"; head.append(verdict);
      const mean = c.H.reduce((a, b) => a + b, 0) / (c.H.length || 1);
      for (const text of [`${c.ids.length} tokens`, `mean entropy ${show(mean)}`, ...c.bad]) { const s = document.createElement("span"); s.textContent = text; head.append(s); }
      const prompt = document.createElement("div"); prompt.className = "prompt"; prompt.textContent = run.prompts[c.p];
      const text = document.createElement("div"); text.className = "text";
      c.ids.forEach((id, i) => {
        const span = document.createElement("span");
        span.className = "t"; span.dataset.c = n; span.dataset.i = i;
        span.textContent = run.vocab[id] === "" ? "∎" : run.vocab[id];
        text.append(span);
      });
      card.append(head, prompt, text);
      return card;
    });
    cards.replaceChildren(...parts);
    $("none").hidden = shown.length > 0;
    paint();
  }

  function paint() {
    if (!frames.length) return;
    const measure = COLOURS[state.colour];
    for (const span of cards.querySelectorAll(".t")) {
      const x = measure.of(shown[span.dataset.c], +span.dataset.i);
      span.style.backgroundColor = x == null ? "" : measure.paint(x);
    }
  }

  function explain(span) {
    cards.querySelectorAll(".t.on").forEach((s) => s.classList.remove("on"));
    if (!span) { tip.style.display = "none"; return; }
    span.classList.add("on");
    const run = data[state.run], c = shown[span.dataset.c], i = +span.dataset.i;
    const line = (dl, name, value) => { const t = document.createElement("dt"), d = document.createElement("dd"); t.textContent = name; d.textContent = value; dl.append(t, d); };
    const name = document.createElement("div"); name.className = "name"; name.textContent = visible(run.vocab[c.ids[i]]);
    const dl = document.createElement("dl");
    line(dl, "position", `${i + 1} of ${c.ids.length}`);
    line(dl, "entropy", `${show(c.H[i])} nats`);
    line(dl, "log-prob", show(c.L[i]));
    line(dl, "probability", c.D ? `${show(Math.exp(c.L[i]))} → ${show(Math.exp(c.L[i]) + c.D[i])}` : show(Math.exp(c.L[i])));
    if (c.A) line(dl, "advantage", show(c.A[i]));
    if (c.G) line(dl, "gradient length", show(c.G[i]));
    tip.replaceChildren(name, dl);
    if (c.top) c.top[i].forEach((id, k) => {
      const row = document.createElement("div"); row.className = "alt";
      const code = document.createElement("code"); code.textContent = visible(run.vocab[id]);
      const cell = document.createElement("span"), bar = document.createElement("div"); bar.className = "bar"; bar.style.width = Math.max(1, 100 * c.P[i][k]) + "%"; cell.append(bar);
      const value = document.createElement("span"); value.textContent = c.Q ? `${show(c.P[i][k], 2)} → ${show(c.Q[i][k], 2)}` : show(c.P[i][k], 2);
      row.append(code, cell, value); tip.append(row);
    });
    tip.style.display = "block";
    const box = span.getBoundingClientRect(), w = tip.offsetWidth, h = tip.offsetHeight;
    tip.style.left = Math.max(8, Math.min(innerWidth - w - 8, box.left)) + "px";
    tip.style.top = (box.bottom + h + 10 < innerHeight ? box.bottom + 8 : Math.max(8, box.top - h - 8)) + "px";
  }

  const token = (e) => (e.target.closest ? e.target.closest(".t") : null);
  cards.addEventListener("pointerover", (e) => explain(token(e)));
  cards.addEventListener("click", (e) => explain(token(e))); // a finger does not hover
  cards.addEventListener("pointerleave", () => explain(null));
  addEventListener("scroll", () => explain(null), { passive: true });
  slider.oninput = () => { state.at = +slider.value; explain(null); draw(); };
  $("play").onclick = () => {
    if (timer) { clearInterval(timer); timer = null; }
    else {
      if (state.at === frames.length - 1) state.at = 0;
      timer = setInterval(() => {
        if (state.at >= frames.length - 1) { clearInterval(timer); timer = null; $("play").textContent = "▶ play"; return; }
        state.at++; draw();
      }, state.fixed ? 900 : 350);
      draw();
    }
    $("play").textContent = timer ? "❚❚ pause" : "▶ play";
  };
  const group = (id, act) => $(id).addEventListener("click", (e) => { const b = e.target.closest("button"); if (b && !b.disabled) { act(b.dataset.v); explain(null); rebuild(); } });
  data.forEach((run, i) => { const b = document.createElement("button"); b.textContent = run.name; b.dataset.v = i; $("runs").append(b); });
  group("runs", (v) => { state.run = +v; });
  group("colours", (v) => { state.colour = v; });
  group("filters", (v) => { state.filter = v; });
  group("modes", (v) => { state.fixed = v === "fixed"; });
  rebuild();
})();
