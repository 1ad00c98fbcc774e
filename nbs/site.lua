-- What the site has beyond quarto's own; it is run for each page and each format.
local SITE = "https://flowbook.github.io/flowbook/"
local COLAB = "https://colab.research.google.com/github/flowbook/flowbook/blob/colab/"
local html = FORMAT:match "^html" ~= nil
local readme = (PANDOC_STATE.output_file or ""):match "README" ~= nil

-- nbdev writes links to names of the library in full; within the site they are
-- short, so that they hold in a preview, offline and on a copy of the site.
function Link(link)
  if html and link.target:sub(1, #SITE) == SITE then
    local rest = link.target:sub(#SITE + 1)
    link.target = rest == "" and "index.html" or rest
    return link
  end
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
