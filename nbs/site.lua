-- What the site has beyond quarto's own; it is run for each page and each format.
local SITE = "https://flowbook.github.io/flowbook/"
local COLAB = "https://colab.research.google.com/github/flowbook/flowbook/blob/colab/"
local html = FORMAT:match "^html" ~= nil
local output = PANDOC_STATE.output_file or ""
local readme = output:match "README" ~= nil
local top = readme or output:match "CONTRIBUTING" ~= nil   -- they lie above nbs/

-- nbdev writes links to names of the library in full; within the site they are
-- short, so that they hold in a preview, offline and on a copy of the site.
function Link(link)
  if html and link.target:sub(1, #SITE) == SITE then
    local rest = link.target:sub(#SITE + 1)
    link.target = rest == "" and "index.html" or rest
    return link
  elseif not html and not top then           -- the pages' markdown, for llms.txt
    link.target = link.target:gsub("^%d*_?([%w_]+)%.ipynb", "%1.html.md")
    return link
  end
end

-- What follows a formula closely stays on its line; sizes such as 8 × 8 are one word.
function Inlines(inlines)
  if not html then return end
  local out = pandoc.Inlines {}
  for i, x in ipairs(inlines) do
    local last = out[#out]
    if x.t == "Str" and last and last.t == "Math" and last.mathtype == "InlineMath"
        and x.text:match "^[,.;:?!)]" then
      out[#out] = pandoc.Span({ last, x }, { class = "text-nowrap" })
    elseif x.t == "Space" and i > 1 and inlines[i + 1]
        and ((inlines[i - 1].text or ""):match "%d$" and inlines[i + 1].text == "×"
          or inlines[i - 1].text == "×" and (inlines[i + 1].text or ""):match "^%d") then
      out:insert(pandoc.Str "\u{a0}")
    else
      out:insert(x)
    end
  end
  return out
end

-- README.md lies above nbs/. A moving picture stands still for those who ask.
function Image(image)
  local here = not image.src:match "^%a+:" and not image.src:match "^index_files/"
  if readme and here then
    image.src = "nbs/" .. image.src
    return image
  elseif html and image.src:match "%.gif$" then
    return {
      pandoc.RawInline("html", '<picture><source srcset="' ..
        image.src:gsub("gif$", "png") ..
        '" media="(prefers-reduced-motion: reduce)">'),
      image,
      pandoc.RawInline("html", "</picture>"),
    }
  end
end

-- Each chapter says where it can be run.
function Pandoc(doc)
  local name = pandoc.path.filename(quarto.doc.input_file)
  if html and name:match "^%d%d_" then
    name = name:gsub("%.[^.]*$", ".ipynb")
    local link = pandoc.Link("Open in Colab", COLAB .. name)
    doc.blocks:insert(1, pandoc.Div(pandoc.Para(link), { class = "open-in-colab" }))
    return doc
  end
end
