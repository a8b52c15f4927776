// What is wrong with a page as it stands on the screen, in words.
() => {
    const box = e => e.getBoundingClientRect(), faults = [], wide = document.documentElement.clientWidth;
    const say = (what, e) => faults.push(what + ': ' + (e.textContent || e.outerHTML).trim().slice(0, 60));
    if (document.documentElement.scrollWidth > wide) faults.push('the page is wider than the window');
    if (!document.documentElement.lang || !document.title) faults.push('the page has no language or title');
    if (document.querySelectorAll('h1, legend').length != 1) faults.push('the page has not one heading');
    const parse = text => { const n = text.match(/[\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1] };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const luminance = c => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
        const v = c[i] / 255; return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4) }, 0);
    const contrast = (a, b) => {
        const [x, y] = [luminance(a), luminance(b)]; return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05) };
    const ground = e => {
        const layers = []; for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
        return layers.reduceRight((below, top) => over(top, below), [255, 255, 255, 1]) };
    for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()), style = getComputedStyle(e);
        if (!own || e.closest('title, svg')) continue;
        if (contrast(parse(style.color), ground(e)) < 4.5) say('faint', e);
        if (parseFloat(style.fontSize) < 12) say('small', e);
    }
    for (const svg of document.querySelectorAll('svg')) {
        const all = box(svg), words = [...svg.querySelectorAll('text')], scale = all.width / svg.viewBox.baseVal.width;
        if (all.width < 200 || all.height < 40) say('no size', svg);
        if (!svg.getAttribute('aria-label')) say('no name', svg);
        const areas = [...svg.querySelectorAll('rect')];
        if (!areas.length && !svg.querySelector('circle')) say('nothing drawn', svg);
        for (const mark of svg.querySelectorAll('rect:not([fill-opacity="0.25"], [width="10.0"][height="10.0"]), circle'))
            if (!mark.querySelector('title')) say('untold', mark);
        for (const word of words) {
            const b = box(word);
            if (b.left < all.left - 1 || b.right > all.right + 1 || b.top < all.top - 1 || b.bottom > all.bottom + 1) say('cut off', word);
            if (parseFloat(getComputedStyle(word).fontSize) * scale < 9) say('small', word);
            for (const other of words) {
                const o = box(other);
                if (other != word && b.left < o.right - 1 && o.left < b.right - 1 && b.top < o.bottom - 4 && o.top < b.bottom - 4)
                    say('one upon the other', word);
            }
            const under = areas.filter(a => { const r = box(a), x = (b.left + b.right) / 2, y = (b.top + b.bottom) / 2;
                return r.left < x && x < r.right && r.top < y && y < r.bottom });
            const behind = under.reduce((below, a) => {
                const style = getComputedStyle(a); return over([...parse(style.fill).slice(0, 3), +style.fillOpacity], below) },
                [255, 255, 255, 1]);
            if (contrast(parse(getComputedStyle(word).fill), behind) < 4.5) say('faint', word);
        }
    }
    for (const input of document.querySelectorAll('input:not([type=hidden]), textarea, select')) {
        const labels = [...(input.labels || [])];
        if (!labels.some(l => l.textContent.trim())) say('no label', input);
        if (!labels.some(l => box(l).width >= 24 && box(l).height >= 24)) say('too small to be hit', input);
    }
    return [...new Set(faults)];
}
