/*
 * Runs an exported model on the selected annotations of the open image, and adds what it finds as annotations.
 *
 * QuPath 0.5 or later with the Deep Java Library extension and its TensorFlow engine (Extensions > Deep Java Library >
 * Manage DJL engines). In the script editor, set MODEL. On a command line:
 *
 *     QuPath script --image slide.tif --args /data/run/model predict_region.groovy
 *
 * where nothing is selected, so the whole image is taken. For many slides, for maps and for tables use predict.py, whose
 * .geojson files QuPath opens.
 */
import ai.djl.ndarray.NDList
import ai.djl.ndarray.types.DataType
import ai.djl.ndarray.types.Shape
import ai.djl.repository.zoo.Criteria
import ai.djl.translate.NoopTranslator
import groovy.json.JsonSlurper
import java.nio.ByteBuffer
import java.nio.file.Path
import qupath.lib.analysis.images.ContourTracing
import qupath.lib.analysis.images.SimpleImages
import qupath.lib.objects.PathObjects
import qupath.lib.objects.classes.PathClass
import qupath.lib.regions.ImagePlane
import qupath.lib.regions.ImageRegion
import qupath.lib.regions.RegionRequest
import qupath.lib.roi.GeometryTools

def MODEL = args ? args[0] : "/path/to/run/model"
def MOST_PIXELS = 200_000_000L  // of a region at the model's spacing: one byte for each is held

def card = new JsonSlurper().parse(new File(MODEL, "card.json"))
int tile = card.input.tile
int margin = Math.round(tile * card.input.overlap / 2)  // at each side of a tile, where it sees too little
def names = card.classes.collect { it[0] }

def server = getCurrentServer()
def calibration = server.getPixelCalibration()
double downsample = 1
if (card.input.spacing_um != null) {
    if (!calibration.hasPixelSizeMicrons())
        throw new IllegalStateException("The image does not say its pixel size, but the model works at ${card.input.spacing_um} µm")
    downsample = card.input.spacing_um / calibration.getAveragedPixelSizeMicrons()
}

def selected = getSelectedObjects().findAll { it.isAnnotation() && it.hasROI() }
def regions = selected ? selected.collect { ImageRegion.createInstance(it.getROI()) }
                       : [ImageRegion.createInstance(0, 0, server.getWidth(), server.getHeight(), 0, 0)]

/** The corners, in pixels of the model, of tiles that cover a length; the last one ends where the length ends. */
List<Integer> corners(int length, int tile, int margin) {
    if (length <= tile)
        return [0]
    int step = tile - 2 * margin
    def found = []
    for (int corner = 0; corner < length - tile; corner += step)
        found << corner
    found << length - tile
    return found
}

/** Red, green and blue of a tile as bytes; white where the image is smaller than a tile. */
ByteBuffer pixelsOf(image, int tile) {
    def bytes = ByteBuffer.allocateDirect(tile * tile * 3)
    int width = Math.min(tile, image.getWidth()), height = Math.min(tile, image.getHeight())
    int[] rgb = image.getRGB(0, 0, width, height, null, 0, width)
    for (int y = 0; y < tile; y++)
        for (int x = 0; x < tile; x++) {
            int value = x < width && y < height ? rgb[y * width + x] : 0xFFFFFF
            bytes.put((byte) (value >> 16)).put((byte) (value >> 8)).put((byte) value)
        }
    bytes.rewind()
    return bytes
}

def criteria = Criteria.builder().setTypes(NDList, NDList).optEngine("TensorFlow").optModelPath(Path.of(MODEL))
    .optTranslator(new NoopTranslator()).build()
def model = criteria.loadModel()
def predictor = model.newPredictor()
try {
    regions.each { region ->
        int width = Math.ceil(region.getWidth() / downsample), height = Math.ceil(region.getHeight() / downsample)
        if ((long) width * height > MOST_PIXELS)
            throw new IllegalStateException("The region has ${width} × ${height} pixels at the model's spacing: select a smaller one, or use predict.py")
        def classes = new byte[height][width]
        def columns = corners(width, tile, margin), rows = corners(height, tile, margin)
        rows.each { top ->
            columns.each { left ->
                int across = Math.min(tile, width - left), down = Math.min(tile, height - top)
                def request = RegionRequest.createInstance(server.getPath(), downsample,
                    (int) (region.getX() + left * downsample), (int) (region.getY() + top * downsample),
                    (int) Math.round(across * downsample), (int) Math.round(down * downsample))
                def buffer = pixelsOf(server.readRegion(request), tile)
                def manager = model.getNDManager().newSubManager()
                try {
                    def images = manager.create(buffer, new Shape(1, tile, tile, 3), DataType.UINT8)
                    def result = predictor.predict(new NDList(images)).get(0)
                    int count = result.getShape().get(3)
                    float[] probabilities = result.toFloatArray()
                    // A tile's margin belongs to its neighbour, but at the border of the region there is none.
                    int x0 = left == 0 ? 0 : margin, x1 = left + tile >= width ? across : tile - margin
                    int y0 = top == 0 ? 0 : margin, y1 = top + tile >= height ? down : tile - margin
                    for (int y = y0; y < y1; y++)
                        for (int x = x0; x < x1; x++) {
                            int first = (y * tile + x) * count, best = 0
                            for (int c = 1; c < count; c++)
                                if (probabilities[first + c] > probabilities[first + best])
                                    best = c
                            classes[top + y][left + x] = (byte) best
                        }
                } finally {
                    manager.close()
                }
            }
        }
        def whole = RegionRequest.createInstance(server.getPath(), downsample, region)
        def plane = ImagePlane.getPlane(region.getZ(), region.getT())
        for (int c = 1; c < names.size(); c++) {
            float[] inside = new float[width * height]
            for (int y = 0; y < height; y++)
                for (int x = 0; x < width; x++)
                    inside[y * width + x] = classes[y][x] == c ? 1 : 0
            def outline = ContourTracing.createTracedGeometry(SimpleImages.createFloatImage(inside, width, height), 0.5, 1.5, whole)
            if (outline == null || outline.isEmpty())
                continue
            def objects = (0..<outline.getNumGeometries()).collect {
                def roi = GeometryTools.geometryToROI(outline.getGeometryN(it), plane)
                PathObjects.createAnnotationObject(roi, PathClass.fromString(names[c]))
            }
            addObjects(objects)
            println "${names[c]}: ${objects.size()} annotations"
        }
    }
} finally {
    predictor.close()
    model.close()
}
